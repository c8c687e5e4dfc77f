"""A recipe of toy steps that count: add up numbers from a file, slowly enough to be killed in the middle."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omni2vec.data.types import DataError, Example, Item, Step, Where, digest


@dataclass(frozen=True)
class Optimizer:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Lines:
    """A Source over a text file."""

    path: str
    name: str = "lines"

    def open(self, where: Where) -> LineRows:
        if not Path(self.path).is_file():
            raise DataError(f"{self.path}: no such file")
        return LineRows(self.name, Path(self.path).read_text())


@dataclass(frozen=True)
class LineRows:
    name: str
    text: str

    @property
    def digest(self) -> str:
        return digest(self.text)

    def __len__(self) -> int:
        return len(self.text.splitlines())

    def __getitem__(self, index: int) -> Example:
        item = Item.text(self.text.splitlines()[index])
        return Example(f"lines/{index}", self.name, "retrieval", item, (item,))


@dataclass(frozen=True)
class Numbers:
    """Writes the numbers below `count`; starts afresh after a kill."""

    name: str = "numbers"
    count: int = 3
    kind: Literal["up", "down"] = "up"
    workers: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"{self.name}: count={self.count}, expected 1 or more")

    def make(self, out: Path, where: Where) -> None:
        assert not any(out.iterdir())
        numbers = range(self.count) if self.kind == "up" else range(self.count - 1, -1, -1)
        (out / "numbers.json").write_text(json.dumps(list(numbers)))


@dataclass(frozen=True)
class Train:
    """Adds up the numbers, one a step, writing where it stands; goes on from there after a kill."""

    resumes = True
    data: Numbers
    name: str = "train"
    steps: int = 5
    optimizer: Optimizer = Optimizer()
    weights: Mapping[str, float] = field(default_factory=dict)
    sources: tuple[Lines, ...] = ()
    limit: float | None = None
    slow_s: float = 0.0

    def make(self, out: Path, where: Where) -> None:
        log = out / "log.jsonl"
        done = len(log.read_text().splitlines()) if log.exists() else 0
        for step in range(done, self.steps):
            time.sleep(self.slow_s)
            with log.open("a") as file:
                file.write(json.dumps({"step": step, "pid": os.getpid()}) + "\n")
        numbers = json.loads((where(self.data) / "numbers.json").read_text())
        (out / "sum.json").write_text(json.dumps(sum(numbers) * self.optimizer.lr))

    def plan(self, where: Where) -> Mapping[str, str]:
        numbers = json.loads((where(self.data) / "numbers.json").read_text())
        return {"numbers": str(len(numbers)), "steps": str(self.steps)}

    def preview(self, step: int, where: Where) -> Iterator[str]:
        numbers = json.loads((where(self.data) / "numbers.json").read_text())
        yield f"batch {step} of {self.name}: number {numbers[step % len(numbers)]}"


@dataclass(frozen=True)
class Report:
    of: tuple[Train, ...]
    name: str = "report"

    def make(self, out: Path, where: Where) -> None:
        sums = {step.name: json.loads((where(step) / "sum.json").read_text()) for step in self.of}
        (out / "report.html").write_text(f"<p>{json.dumps(sums)}</p>")


def recipe(
    *, count: int = 3, steps: int = 5, slow_s: float = 0.0, data: str = "", kind: Literal["up", "down"] = "up"
) -> Step:
    numbers = Numbers(count=count, kind=kind)
    train = Train(
        numbers,
        steps=steps,
        slow_s=slow_s,
        weights={"lines": 1.0, "other": 2.0},
        sources=(Lines(data),) if data else (),
    )
    return Report((train, Train(numbers, name="again", steps=1)))
