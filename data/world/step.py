"""The World step: every task of the synthetic world as shards, train and test apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from ..shards import write_shards
from ..types import DataError, Example, Where
from .compositions import Split
from .tasks import TASKS, examples

BLOCK = 64  # rows that a worker draws at a time
ALONE = 2000  # rows up to which this process draws them all: starting workers takes a second

Job = tuple[str, Split, int, int, int, int, int]  # task, split, count, seed, first, pixels, hard


@dataclass(frozen=True)
class World:
    """Writes `train` and `test` rows of each task to out/{train,test}/{task}/.

    Equal fields give equal bytes on any number of cores. Test rows show only compositions that no training row has.
    """

    name: str = "world"
    train: int = 1250
    test: int = 150
    seed: int = 0
    tasks: tuple[str, ...] = tuple(TASKS)
    pixels: int = 96  # width and height of a scene; clips and pages keep their proportion to it
    hard: int = 3  # wrong answers that a training row carries; a test row carries its whole pool

    def __post_init__(self) -> None:
        unknown = [t for t in self.tasks if t not in TASKS]
        if unknown or not self.tasks:
            raise DataError(f"{self.name}: tasks={self.tasks!r}; choose from {', '.join(TASKS)}")
        if self.train < 0 or self.test < 0 or not self.train + self.test:
            raise DataError(f"{self.name}: train={self.train}, test={self.test} rows; give a positive number of one")
        if not 48 <= self.pixels <= 1024:
            raise DataError(f"{self.name}: pixels={self.pixels}; shapes need 48 at least, and 1024 is enough")
        if self.hard < 0:
            raise DataError(f"{self.name}: hard={self.hard}; give 0 or more wrong answers a training row")

    def make(self, out: Path, where: Where) -> None:
        """Draws all rows, in this process or on all cores, and writes one folder of shards a task."""
        counts: tuple[tuple[Split, int], ...] = (("train", self.train), ("test", self.test))
        folders = [(split, task, count) for split, count in counts for task in self.tasks if count]
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if workers == 1 or sum(count for _, _, count in folders) <= ALONE:
            for split, task, count in folders:
                rows = examples(task, split, count, self.seed, pixels=self.pixels, hard=self.hard)
                write_shards(rows, out / split / task)
            return
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for split, task, count in folders:
                write_shards(self._drawn(pool, split, task, count), out / split / task)

    def _drawn(self, pool: ProcessPoolExecutor, split: Split, task: str, count: int) -> Iterator[Example]:
        jobs = [
            (task, split, min(BLOCK, count - first), self.seed, first, self.pixels, self.hard)
            for first in range(0, count, BLOCK)
        ]
        for block in pool.map(_block, jobs):
            yield from block


def _block(job: Job) -> list[Example]:
    task, split, count, seed, first, pixels, hard = job
    rows = list(examples(task, split, count, seed, first=first, pixels=pixels, hard=hard))
    for row in rows:
        for item in (row.query, *row.positives, *row.negatives):
            _ = item.id  # digests the media here, and travels with the item
    return rows
