"""A judge's scores beside a source: a side-car of numbers by row key, and the source that serves rows with them.

scores.safetensors holds, for n rows in the order of their keys' ids: `key` (n, 2) int64, ascending; `content` (n, 2),
which names the row's query and candidates; `end` (n,), where its scores end in `score` float32, one a candidate,
positives first. The Judged step (train/judge.py) writes it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mix import folder_of
from .opened import ends_of
from .relation import id_pair
from .types import DataError, Example, Rows, Source, Step, Where, digest
from .vectors import ordered

FILE = "scores.safetensors"
_KINDS = {"key": "int64", "content": "int64", "end": "int64", "score": "float32"}


def content_of(example: Example) -> tuple[int, int]:
    """What a row's scores are of: its query, its positives, its negatives, in their order."""
    ids = [i.id for i in (example.query, *example.positives, *example.negatives)]
    return id_pair(digest("candidates", str(len(example.positives)), *ids))


def write(
    folder: Path,
    keys: NDArray[np.int64],
    content: NDArray[np.int64],
    counts: NDArray[np.int64],
    scores: NDArray[np.float32],
    about: Mapping[str, str],
) -> Path:
    """The side-car of n rows in any order: keys and content (n, 2), counts (n,), scores (counts.sum(),)."""
    from safetensors.numpy import save_file

    order = ordered(keys)
    if (np.diff(keys[order], axis=0) == 0).all(1).any():
        raise DataError(f"{folder}: two rows of source {about.get('source')!r} have one key; keys must differ")
    start = np.cumsum(counts) - counts
    sizes = counts[order]
    ends = np.cumsum(sizes)
    places = np.repeat(start[order] - (ends - sizes), sizes) + np.arange(int(sizes.sum()))
    arrays = {"key": keys[order], "content": content[order], "end": ends, "score": scores[places]}
    path = folder / FILE
    aside = path.with_name(f".{FILE}.{os.getpid()}.part")
    told = {**about, "digest": digest(*(np.ascontiguousarray(a).tobytes() for a in arrays.values()))}
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, aside, metadata=told)
    aside.replace(path)
    return path


@dataclass(frozen=True)
class Scored:
    """The rows of `source` with scores[score] from the side-car of `by`, a Judged step or its folder.

    Rows are found by their keys, so that Take, Rest and other orders of the judged source fit too. Raises DataError,
    naming the row, for one that was not judged, or whose query or candidates are others now.
    """

    source: Source
    by: Step | str
    score: str = "rerank"
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.source.name)

    def outside(self, where: Where) -> dict[str, str]:
        """The digest of scores that no step of the recipe made."""
        return {f"scores {self.by}": read(Path(self.by))[1]["digest"]} if isinstance(self.by, str) else {}

    def open(self, where: Where) -> Rows:
        folder = folder_of(self.by, where)
        arrays, about = read(folder)
        return ScoredRows(self.name, self.score, self.source.open(where), folder, arrays, about["digest"])


@dataclass(frozen=True)
class ScoredRows:
    """Rows, each with its scores."""

    name: str
    score: str
    rows: Rows
    folder: Path
    arrays: Mapping[str, NDArray[Any]]
    scores_digest: str

    @cached_property
    def digest(self) -> str:
        return digest("scored", self.name, self.score, self.rows.digest, self.scores_digest)

    @property
    def ends(self) -> NDArray[np.int64]:
        return ends_of(self.rows)

    @property
    def fields(self) -> Any:
        return getattr(self.rows, "fields", None)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        example = self.rows[index]
        place = self._place(example)
        if tuple(self.arrays["content"][place].tolist()) != content_of(example):
            raise DataError(
                f"{example.key}: its query or its candidates are others than those that {self.folder / FILE} has "
                "scores of; judge the source anew, or give Scored the one that was judged"
            )
        ends = self.arrays["end"]
        own = self.arrays["score"][(int(ends[place - 1]) if place else 0) : int(ends[place])]
        return replace(example, source=self.name, scores={**example.scores, self.score: tuple(own.tolist())})

    def __getstate__(self) -> dict[str, object]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def _place(self, example: Example) -> int:
        keys = self.arrays["key"]
        high, low = id_pair(example.key)
        first, last = (int(np.searchsorted(keys[:, 0], high, side)) for side in ("left", "right"))
        found = first + int(np.searchsorted(keys[first:last, 1], low))
        if found >= last or int(keys[found, 1]) != low:
            raise DataError(
                f"{example.key}: not among the {len(keys):,} rows that {self.folder / FILE} has scores of; judge this "
                "source, too"
            )
        return found


def read(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """(arrays, what was written of them). Raises DataError where the side-car is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        raise DataError(f"{folder}: no {FILE}; name a Judged step or the folder that one has made")
    try:
        with safe_open(path, framework="numpy") as file:
            about = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); was it cut short? Make it again") from error
    if {name: str(a.dtype) for name, a in arrays.items()} != _KINDS or "digest" not in about:
        raise DataError(
            f"{path}: holds {', '.join(arrays)}; expected {', '.join(_KINDS)}, as a Judged step writes them"
        )
    return arrays, about
