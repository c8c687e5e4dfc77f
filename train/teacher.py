"""Vectors of rows by a frozen model, the teacher: encoded window by window, by all ranks, and not again after a kill.

A window's vectors are a file in the step's folder until the step is done. Rank 0 alone keeps vectors in memory.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..data.absent import advice
from ..data.counter import choose
from ..data.types import DataError, Example, Prompted, Rows, Side, Step, Where
from ..eval.matrix import Mapped, write
from ..model.embedder import Embedder
from ..model.encode import Spread, encode
from ..model.encoder import load_encoder
from ..model.types import Encoder
from .gather import Group
from .guard import Restart, Signals
from .leave import everyone, together

WINDOW = 4096  # prompts a file
FOLDER = "vectors"  # in the step's folder, while it is made
_LATE_S = 60.0  # a shared folder may show another host's file so late
_COUNTED = 64  # rows whose tokens are counted for a plan


@dataclass(frozen=True)
class Told:
    """Which instructions the teacher is shown, in place of the rows' own where given."""

    instruction: str | None = None
    target_instruction: str | None = None

    def prompt(self, example: Example, side: Side) -> Prompted:
        """The query, or the first positive. Raises DataError for a row without one."""
        if side == "query":
            own = example.instruction if self.instruction is None else self.instruction
            return Prompted(example.query, "query", own, key=example.key)
        if not example.positives:
            told = advice(example, "compare it")
            raise DataError(f"{example.key}: no positive, so there is no document to compare; {told}")
        own = example.target_instruction if self.target_instruction is None else self.target_instruction
        return Prompted(example.positives[0], "target", own, key=example.key)


@dataclass
class Teacher:
    """`encoder` over the ranks of `group`. out: the step's folder; signals: asked to end, it stops between windows."""

    encoder: Encoder
    digest: str
    out: Path
    group: Group
    signals: Signals

    @staticmethod
    def load(model: Step | str, where: Where, out: Path, group: Group, signals: Signals) -> Teacher:
        encoder = load_encoder(model if isinstance(model, str) else where(model))
        (out / FOLDER).mkdir(exist_ok=True)
        return Teacher(encoder, encoder.digest, out, group, signals)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def vectors(self, name: str, count: int, prompt: Callable[[int], Prompted]) -> Tensor:
        """(count, D) float32 of prompt(0), ..., unit length, on rank 0; (0,) elsewhere. name: of the files, and of the
        bar. Collective."""
        self.encode(name, count, prompt)
        out = torch.empty(0)
        if self.group.rank:
            return out
        for start, window in self.kept(name, count):  # one at a time: two copies of them all may be more than it has
            out = out if start else window.new_empty((count, window.shape[1]))
            out[start : start + len(window)] = window
        return out

    def matrix(self, name: str, count: int, prompt: Callable[[int], Prompted]) -> Mapped:
        """(count, D) as `vectors`, in a file that all ranks map: no rank has them in memory. Collective."""
        path = self.out / FOLDER / f"{name}.safetensors"
        if not everyone(self.group, _told(path) == self.digest if self.group.rank == 0 else None)[0]:
            self.encode(name, count, prompt)
            together(self.group, lambda: self._joined(name, path, count) if self.group.rank == 0 else None)
        return together(self.group, lambda: _appeared(path))

    def _joined(self, name: str, path: Path, count: int) -> None:
        width = self._load(name, 0).shape[1]
        write(path, (v for _, v in self.kept(name, count)), (count, width), metadata={"teacher": self.digest})
        for start in range(0, count, WINDOW):
            self._path(name, start).unlink()

    def encode(self, name: str, count: int, prompt: Callable[[int], Prompted]) -> None:
        """Leaves a file of vectors for each window of prompt(0), ..., prompt(count - 1). Collective."""
        starts = range(0, count, WINDOW)
        done = everyone(self.group, [s for s in starts if self._kept(name, s)] if self.group.rank == 0 else None)[0]
        assert isinstance(done, list)
        for start in starts:
            if start in done:
                continue
            end = min(start + WINDOW, count)
            self.pause()
            shown = f"{name} {start:,} to {end:,} of {count:,}" if self.group.rank == 0 else ""
            vectors = self._encoded([prompt(i) for i in range(start, end)], shown)
            if self.group.rank == 0:
                self._keep(name, start, vectors)

    def kept(self, name: str, count: int) -> Iterator[tuple[int, Tensor]]:
        """(its first prompt, its vectors (n, D)) of every window that `encode` left."""
        return ((start, self._load(name, start)) for start in range(0, count, WINDOW))

    def pause(self) -> None:
        """Raises Restart on all ranks where one of them was asked to end. Collective."""
        asked = [str(a) for a in everyone(self.group, self.signals.asked) if a]
        if asked:
            raise Restart(f"asked to end by {asked[0]}; the vectors so far are kept in {self.out / FOLDER}")

    def forget(self) -> None:
        """The files of vectors go: the step is done."""
        shutil.rmtree(self.out / FOLDER, ignore_errors=True)

    def _encoded(self, prompts: Sequence[Prompted], shown: str) -> Tensor:
        if isinstance(self.encoder, Embedder):
            embedder, group = self.encoder, self.group
            many = Spread(group.ranks, lambda inputs: embedder(inputs.to(embedder.device)).vectors, group.sum_)
            return encode(embedder, prompts, progress=shown, spread=many if group.size > 1 else None)
        if self.group.rank:
            return torch.empty(0)  # other encoders know nothing of ranks: rank 0 does it alone
        return _by_instruction(self.encoder, prompts, shown)

    def _path(self, name: str, start: int) -> Path:
        return self.out / FOLDER / f"{name}-{start:012d}.safetensors"

    def _kept(self, name: str, start: int) -> bool:
        """Whether the window is there, by this teacher."""
        return _told(self._path(name, start)) == self.digest

    def _keep(self, name: str, start: int, vectors: Tensor) -> None:
        from safetensors.torch import save_file

        path = self._path(name, start)
        aside = path.with_name(f".{path.name}.part")
        save_file({"vectors": vectors.contiguous()}, aside, metadata={"teacher": self.digest})
        aside.replace(path)

    def _load(self, name: str, start: int) -> Tensor:
        from safetensors.torch import load_file

        vectors: Tensor = load_file(self._path(name, start))["vectors"]
        return vectors


def _told(path: Path) -> str | None:
    """The digest of the teacher whose vectors a file holds; None where there is no whole one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("teacher")
    except (OSError, SafetensorError):
        return None


def _appeared(path: Path) -> Mapped:
    """Raises DataError where another rank's file does not come into sight."""
    end = time.monotonic() + _LATE_S
    while not path.exists():
        if time.monotonic() > end:
            raise DataError(f"{path}: rank 0 has written it, and it is not here; all ranks need one shared folder")
        time.sleep(0.1)
    return Mapped(path)


def _by_instruction(encoder: Encoder, prompts: Sequence[Prompted], shown: str) -> Tensor:
    """An Encoder takes Items of one side and instruction at a time."""
    places: dict[tuple[Side, str], list[int]] = {}
    for i, p in enumerate(prompts):
        places.setdefault((p.side, p.instruction), []).append(i)
    found: dict[int, Tensor] = {}
    for (side, instruction), mine in places.items():
        vectors = encoder.encode_items(
            [prompts[i].item for i in mine], side=side, instruction=instruction, progress=shown
        )
        found.update(zip(mine, vectors.float().cpu(), strict=True))
    return torch.stack([found[i] for i in range(len(prompts))])


def estimate(encoder: Encoder, rows: Rows, told: Told, count: int) -> dict[str, str]:
    """What it takes to encode query and document of `count` rows, from the token counts of a few."""
    if not isinstance(encoder, Embedder):
        return {"items": f"{2 * count:,} at most"}
    some = [rows[i] for i in choose(len(rows), min(_COUNTED, count), 0, "estimate")]
    sides: tuple[Side, ...] = ("query", "target")
    prompts = [told.prompt(example, side) for example in some for side in sides]
    costs = encoder.format.count(prompts, [encoder.limits] * len(prompts))
    tokens = 2 * fmean(c.tokens for c in costs) * count
    return {"items": f"{2 * count:,} at most", "tokens": f"about {tokens:,.0f} at most, forward only"}
