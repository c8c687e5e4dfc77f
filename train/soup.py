"""The greedy soup (arXiv:2203.05482): models join the mean, best first, as long as its score does not fall."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.types import DataError, Source

LOG = "soup.json"


@dataclass(frozen=True)
class Greedy:
    """The rule of a Merge step that keeps those models whose mean scores best on `validate`.

    validate: sources that declare their task; the score is the mean of the tasks' main metrics. limit: rows of each
    task at most; None: all. gain: by how much the score must rise for a model to be kept; 0 keeps it at a tie.
    """

    validate: tuple[Source, ...]
    limit: int | None = None
    gain: float = 0.0

    def __post_init__(self) -> None:
        if not self.validate:
            raise DataError("a greedy soup needs validate: at least one source to score on")


def greedy(
    names: Sequence[str], rule: Greedy, score: Callable[[tuple[int, ...]], float], out: Path
) -> tuple[tuple[int, ...], float]:
    """The models that are kept, best first, and the score of their mean. score: of the mean of some models, by index.

    Writes every score to out/soup.json, and takes it from there after a kill.
    """
    file = out / LOG
    found: dict[str, float] = {}
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        found = before["scores"] if before["models"] == list(names) else {}

    def scored(members: tuple[int, ...]) -> float:
        key = "+".join(map(str, sorted(members)))
        if key not in found:
            found[key] = score(tuple(sorted(members)))
            _write(file, {"models": list(names), "scores": found})
        return found[key]

    alone = [scored((i,)) for i in range(len(names))]
    order = sorted(range(len(names)), key=lambda i: (-alone[i], i))
    kept: tuple[int, ...] = (order[0],)
    best = alone[order[0]]
    for i in order[1:]:
        value = scored((*kept, i))
        if value - best >= rule.gain:
            kept, best = (*kept, i), value
    _write(file, {"models": list(names), "scores": found, "kept": list(kept), "score": best})
    return kept, best


def _write(file: Path, content: object) -> None:
    aside = file.with_name(f".{file.name}.part")
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    aside.replace(file)


def forget(folder: Path) -> None:
    """A candidate that was scored."""
    shutil.rmtree(folder, ignore_errors=True)
