"""Which rows are batch t: a pure function of (sizes, weights, batch, sub_batch, seed, t), and so a seek.

A source's draws run through one permutation of its rows an epoch. A sub-batch may reach over the end of an epoch:
what is left of it is not lost, and the next epoch goes on in the same sub-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .counter import permuted
from .mix import Mixture, schedule


class Address(NamedTuple):
    """Row `row` of source `source`, which is the draw-th row (from 0) that this source gives in the run, in batch
    `step`. pattern: which of the feed's patterns it is seen in; -1 where there are none, or none is chosen yet."""

    source: int
    row: int
    draw: int
    step: int = 0
    pattern: int = -1


@dataclass(frozen=True)
class Order:
    """sizes: rows of each source; weights: their shares of the sub-batches; batch, sub_batch: rows."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    batch: int
    sub_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.sub_batch < 1 or self.batch % self.sub_batch:
            raise ValueError(
                f"batch={self.batch} is not a whole number of sub-batches of {self.sub_batch} rows; "
                "choose sub_batch from the divisors of batch"
            )
        if len(self.sizes) != len(self.weights):
            raise ValueError(f"{len(self.sizes)} sources and {len(self.weights)} weights; expected one weight each")
        for s, (size, weight) in enumerate(zip(self.sizes, self.weights, strict=True)):
            if size < 1 and weight > 0:
                raise ValueError(f"source {s} has no rows, but weight {weight}; give it rows or leave it out")

    @cached_property
    def mixture(self) -> Mixture:
        return schedule(self.weights, self.seed)

    def rows_of(self, step: int) -> list[Address]:
        """The rows of batch `step` (from 0), sub-batch by sub-batch."""
        each = self.batch // self.sub_batch
        turns = self.mixture.sources(step * each, each)
        return [a for source, before in turns for a in self._draws(source, before * self.sub_batch, self.sub_batch)]

    def epochs(self, step: int) -> tuple[float, ...]:
        """How often each source has been gone through before batch `step`."""
        each = self.batch // self.sub_batch
        cycles, rest = divmod(step * each, self.mixture.cycle)
        turns = [cycles * c for c in self.mixture.counts]
        for source, _ in self.mixture.sources(cycles * self.mixture.cycle, rest):
            turns[source] += 1
        return tuple(t * self.sub_batch / max(1, size) for t, size in zip(turns, self.sizes, strict=True))

    def _draws(self, source: int, first: int, count: int) -> list[Address]:
        size, found = self.sizes[source], []
        while count:
            epoch, place = divmod(first, size)
            here = min(count, size - place)
            rows = permuted(np.arange(place, place + here), size, self.seed, "epoch", source, epoch)
            found += [Address(source, row, first + i) for i, row in enumerate(rows.tolist())]
            first, count = first + here, count - here
        return found
