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
    members (n,): the rows, cluster by cluster; then each block is a cluster, and stays whole wherever draws are counted
    in clusters of the largest size: shorter ones end an epoch, and one an epoch is cut to fill what they leave open."""

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
        starts, ends = self._layout(seed, source, epoch)
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
        begins = np.where(turn > 0, ends[turn - 1], 0)
        rows: Longs = starts[turn] + at - begins
        return rows if self.members is None else self.members[rows]

    def _layout(self, seed: int, source: int, epoch: int) -> tuple[Longs, Longs]:
        """Where each block of this epoch's order starts among the rows, and the running total of rows in that order."""
        key = (seed, source, epoch)
        if key not in self._layouts:
            blocks = permuted(np.arange(len(self.ends)), len(self.ends), seed, "blocks", source, epoch)
            sizes = np.diff(self.ends, prepend=0)[blocks]
            starts = self.ends[blocks] - sizes
            if self.members is not None:
                starts, sizes = _aligned(starts, sizes, epoch * self.size)
            self._layouts[key] = (starts, sizes.cumsum())
            while len(self._layouts) > _LAYOUTS:
                self._layouts.popitem(last=False)
        return self._layouts[key]


def _aligned(starts: Longs, sizes: Longs, before: int) -> tuple[Longs, Longs]:
    """Clusters in an order in which those of the largest size begin at its multiples, counted in draws; `before`: draws
    of the epochs before. Shorter clusters come last. The first one gives its first rows to what the epoch before left
    open, and the others at the end."""
    whole = int(sizes.max())
    order = np.argsort(sizes < whole, kind="stable")
    starts, sizes = starts[order], sizes[order]
    lead = -before % whole
    if not lead:
        return starts, sizes
    cut = (np.append(starts, starts[0] + lead), np.append(sizes, whole - lead))
    cut[1][0] = lead
    return cut
