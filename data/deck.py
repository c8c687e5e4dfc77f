"""One source's rows in the order of its epochs: its blocks are shuffled, then the rows within a window of blocks.

A block is a shard, or a cluster of alike rows. What is read at one time then lies in a few shards, and yet any place of
any epoch is found without those before it: memory and time grow with the blocks, never with the rows.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .counter import permuted
from .types import Rows

WINDOW = 64  # shards that are open in a process at a time: a window of as many costs no opening twice
_LAYOUTS = 2  # epochs whose order of blocks is kept: a batch may reach over an end

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Deck:
    """ends (B,): running total of the rows at the end of each block. window: blocks whose rows are shuffled together.
    members (n,): the rows, block by block, where a block is no range of rows."""

    ends: Longs
    window: int = WINDOW
    members: Longs | None = None
    _layouts: OrderedDict[tuple[int, int, int], tuple[Longs, Longs]] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    @staticmethod
    def of(rows: Rows, window: int = WINDOW) -> Deck:
        """In blocks of a shard, where the rows say where their shards end (`ends`)."""
        ends = np.asarray(getattr(rows, "ends", ()), dtype=np.int64)
        return Deck(ends if len(ends) else np.array([len(rows)], dtype=np.int64), window)

    @property
    def size(self) -> int:
        """Rows of an epoch."""
        return int(self.ends[-1])

    def rows(self, first: int, count: int, seed: int, source: int) -> list[int]:
        """The rows of the draws first, ..., first + count - 1 of a run that goes through epoch after epoch."""
        found: list[int] = []
        while count:
            epoch, place = divmod(first, self.size)
            here = min(count, self.size - place)
            found += self._within(np.arange(place, place + here), seed, source, epoch).tolist()
            first, count = first + here, count - here
        return found

    def _within(self, places: Longs, seed: int, source: int, epoch: int) -> Longs:
        if len(self.ends) <= self.window and self.members is None:
            return permuted(places, self.size, seed, "epoch", source, epoch)
        blocks, ends = self._layout(seed, source, epoch)
        at = np.empty_like(places)
        done = 0
        while done < len(places):
            w = int(np.searchsorted(ends, places[done], side="right")) // self.window
            low = int(ends[w * self.window - 1]) if w else 0
            high = int(ends[min((w + 1) * self.window, len(ends)) - 1])
            here = slice(done, done + min(len(places) - done, high - int(places[done])))
            at[here] = low + permuted(places[here] - low, high - low, seed, "window", source, epoch, w)
            done = here.stop
        turn = np.searchsorted(ends, at, side="right")
        block = blocks[turn]
        before = np.concatenate(([0], self.ends))[block] - np.concatenate(([0], ends))[turn]
        rows: Longs = at + before
        return rows if self.members is None else self.members[rows]

    def _layout(self, seed: int, source: int, epoch: int) -> tuple[Longs, Longs]:
        """The blocks in this epoch's order, and the running total of rows in that order."""
        key = (seed, source, epoch)
        if key not in self._layouts:
            blocks = permuted(np.arange(len(self.ends)), len(self.ends), seed, "blocks", source, epoch)
            ends = np.diff(self.ends, prepend=0)[blocks].cumsum()
            self._layouts[key] = (blocks, ends)
            while len(self._layouts) > _LAYOUTS:
                self._layouts.popitem(last=False)
        return self._layouts[key]
