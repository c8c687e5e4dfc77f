"""What must survive a kill: weights, moments and counters, whatever the number of ranks that saved or that resume.

A checkpoint is a folder that was written aside and renamed: one that is there is whole. No random state is in it, for
every step is seeded anew from (seed, step, rank). What writes it is in snapshot.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.types import DataError
from ..model.checkpoint import RECORD
from .adapt import Seen
from .engine import Engine
from .gather import Group
from .leave import everyone, together
from .parts import Parts, Shapes, digest_of, name_of

FOLDER = "checkpoints"
STATE = "state.json"
FORMAT = 2  # 1: one process's weights.safetensors and moments.safetensors


@dataclass
class State:
    """Where a stage stands. step: updates done; skipped: rows left out, with their keys; choices made by measuring."""

    step: int = 0
    skipped_steps: int = 0
    skipped_sources: dict[str, int] = field(default_factory=dict)
    skipped_keys: list[str] = field(default_factory=list)
    lacking: dict[str, int] = field(default_factory=dict)  # rows that could form no pattern, by source
    mixer: Seen = field(default_factory=Seen)  # of a mix that adapts
    best: float | None = None
    best_step: int = 0
    without_gain: int = 0  # evaluations since the best
    stopped: bool = False
    memory: str = ""
    chunk_tokens: int = 0
    ranks: int = 0  # that measured
    footprint: tuple[float, float] = (0.0, 0.0)  # bytes a token that a graph keeps: all, or its boundaries
    budgets: tuple[int, int] = (0, 0)  # bytes for kept graphs, on the device and on the host
    scores: dict[int, float] = field(default_factory=dict)  # of the evaluations, by step
    healthiest: dict[str, float] = field(default_factory=dict)  # what the collapse alarm compares with
    loss_scale: tuple[float, int] = (1.0, 0)  # of float16, and good steps since it changed

    @staticmethod
    def of(raw: Mapping[str, Any]) -> State:
        """From its JSON form, which has only strings for keys."""
        scores = {int(s): v for s, v in raw.get("scores", {}).items()}
        pairs = {k: tuple(raw[k]) for k in ("footprint", "budgets", "loss_scale") if k in raw}
        return State(**{**raw, **pairs, "scores": scores, "mixer": Seen.of(raw.get("mixer", {}))})


def path_of(out: Path, step: int) -> Path:
    return out / FOLDER / f"step-{step:08d}"


def existing(out: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(p for p in (out / FOLDER).glob("step-*") if p.suffix == "" and (p / STATE).is_file())


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, opened. base: the digest of the model that its stage started from, "" where none was given."""

    folder: Path
    state: State
    base: str
    parts: Parts

    @property
    def shapes(self) -> Shapes:
        return self.parts.shapes


def opened(folder: Path, rank: int = 0, size: int = 1) -> Checkpoint:
    """A checkpoint whose parts rank, rank + size, ... were read whole and found to be what was written. Raises
    DataError with the part and what to do."""
    raw = _record(folder)
    files = [folder / name_of(i, len(raw["parts"])) for i in range(len(raw["parts"]))]
    for file, wanted in zip(files, raw["parts"], strict=True):
        if not file.is_file():
            raise DataError(f"{file.name} of {folder} is missing; {_otherwise(folder)}")
        if (found := file.stat().st_size) != wanted["bytes"]:
            raise DataError(f"{file} has {found:,} bytes, {wanted['bytes']:,} were written; {_otherwise(folder)}")
    for file, wanted in list(zip(files, raw["parts"], strict=True))[rank::size]:
        if digest_of(file) != wanted["digest"]:
            raise DataError(f"{file} is not what was written: its digest is another; {_otherwise(folder)}")
    return Checkpoint(folder, State.of(raw["state"]), raw["base"], Parts(files))


def _record(folder: Path) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no checkpoint, its {STATE} cannot be read ({error})") from error
    if (form := raw.get("format", 1)) != FORMAT:
        age = "an older" if form < FORMAT else "a newer"
        raise DataError(
            f"{folder}: was written by {age} omni2vec (format {form}; this one reads {FORMAT}); end the run with the "
            f"version that began it, or remove {folder.parent} to train the stage from its start"
        )
    return raw


def _otherwise(folder: Path) -> str:
    """What to do about a checkpoint that is damaged."""
    older = [p.name for p in existing(folder.parent.parent) if p.name < folder.name]
    return f"remove that folder to resume from {older[-1] if older else 'the beginning'}"


def load(engine: Engine, folder: Path, group: Group | None = None, base: str = "") -> State:
    """Put weights and moments back, and give the counters. All ranks call it; those that wrote may have been more or
    fewer. base: digest of the model that the stage starts from, compared with the checkpoint's unless either is "".

    Rank 0 raises DataError where the checkpoint is damaged, of an older format or of another model, the others Left.
    """
    group = group or Group()
    found = together(group, lambda: opened(folder, group.rank, group.size))
    own = {p.name: list(p.shape) for p in engine.pieces() if p.kind == "weight"}
    shapes: dict[str, tuple[int, ...]] = {}
    for each in everyone(group, own):
        assert isinstance(each, dict)
        shapes.update({name: tuple(shape) for name, shape in each.items()})
    together(group, lambda: same_model(found, shapes, base))
    engine.restore(found.parts.read)
    return found.state


def same_model(found: Checkpoint, shapes: Shapes, base: str = "") -> None:
    """Raises DataError unless the checkpoint's parameters are those in `shapes`, and its stage started from `base`."""
    saved = found.shapes
    odd = sorted(n for n in saved.keys() | shapes.keys() if saved.get(n) != shapes.get(n))
    if odd:
        here, there = shapes.get(odd[0]), saved.get(odd[0])
        given = f"{'not trained' if there is None else there} there, {'not trained' if here is None else here} here"
        raise DataError(
            f"{found.folder}: is of another model: {odd[0]} is {given}, and {len(odd) - 1} more of {len(saved)} "
            f"parameters differ; give the stage the model, adapter and frozen parts that it was saved with, or remove "
            f"{found.folder.parent} to train it from its start"
        )
    if base and found.base and base != found.base:
        raise DataError(
            f"{found.folder}: its stage started from a model with digest {found.base}, this one from {base}: what is "
            f"not trained differs; put that model back, or remove {found.folder.parent} to train from the start"
        )


def best_steps(state: State, count: int) -> list[int]:
    """The `count` best-scored steps, the best first; of equal ones the earlier."""
    return sorted(state.scores, key=lambda step: (-state.scores[step], step))[:count]


def prune(out: Path, keep: int, state: State, keep_best: int = 1) -> None:
    """Leave the newest `keep` checkpoints (one at least), the `keep_best` best-scored, and the best."""
    found = existing(out)
    there = {p.name for p in found}
    scored = [path_of(out, s) for s in best_steps(state, len(state.scores))]
    kept = set([p for p in scored if p.name in there][:keep_best])
    if state.best is not None:
        kept.add(path_of(out, state.best_step))
    for folder in found[: -max(keep, 1)]:
        if folder not in kept:
            remove(folder)


def remove(folder: Path) -> None:
    """Renamed first: a kill in the middle must not leave half of a checkpoint under a whole one's name."""
    gone = folder.with_name(folder.name + ".gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # what a file system keeps for a while, the next start removes


def clean(out: Path) -> None:
    """Remove what a kill has left half written or half removed. Nobody may be saving."""
    for pattern in ("*.partial", "*.gone"):
        for folder in (out / FOLDER).glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def close(out: Path) -> None:
    """Remove the checkpoints of a stage whose output is whole. Renamed first: half of one must not look like one."""
    gone = out / f"{FOLDER}.gone"
    (out / FOLDER).rename(gone)
    shutil.rmtree(gone)


def closed(out: Path) -> bool:
    """Whether `close` was reached: the output is whole, and there is nothing to resume."""
    if not (out / RECORD).is_file() or (out / FOLDER).exists():
        return False
    shutil.rmtree(out / f"{FOLDER}.gone", ignore_errors=True)
    return True
