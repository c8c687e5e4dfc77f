"""Which source's turn it is: sub-batch j of a run, and how many its source had before, found without a replay.

`Mixture` deals fixed shares exactly in every cycle, `Ending` among sources that end, `Blocks` deals shares that change
from block to block; `Held` lets a source keep its turn for a while.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .counter import bits, permuted

Longs = NDArray[np.int64]

_CYCLE = 1024  # the longest cycle that is searched for exact shares
_LONG = 1 << 14  # sub-batches of a block without a short cycle: a seek counts blocks
_ROUND = 1e-9  # of a turn: what floating-point sums may miss


class Turns(Protocol):
    def sources(self, start: int, count: int) -> list[tuple[int, int]]:
        """(source, how many sub-batches it had before) of the sub-batches start, ..., start + count - 1 of the run."""
        ...

    def had(self, turn: int) -> list[int]:
        """How many of the first `turn` sub-batches were each source's."""
        ...

    @property
    def total(self) -> float:
        """Sub-batches until every source has ended; infinite where one goes on."""
        ...


@dataclass(frozen=True)
class Mixture:
    """`counts[s]` of every `cycle` consecutive sub-batches are source s's, in an order drawn anew for each cycle."""

    counts: tuple[int, ...]
    seed: int
    total: float = math.inf

    @property
    def cycle(self) -> int:
        return sum(self.counts)

    def sources(self, start: int, count: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while count:
            cycle, place = divmod(start, self.cycle)
            here = min(count, self.cycle - place)
            found += _counted(self.order(cycle), place, here, self.had(start))
            start, count = start + here, count - here
        return found

    def had(self, turn: int) -> list[int]:
        cycle, place = divmod(turn, self.cycle)
        inside = np.bincount(self.order(cycle)[:place], minlength=len(self.counts)) if place else [0] * len(self.counts)
        return [cycle * c + int(n) for c, n in zip(self.counts, inside, strict=True)]

    def order(self, cycle: int) -> Longs:
        """(cycle,) the sources of one cycle's sub-batches."""
        return _shuffled(self.counts, self.seed, cycle)


@lru_cache(maxsize=16)
def _shuffled(counts: tuple[int, ...], seed: int, block: int) -> Longs:
    """Each source as often as it counts, in an order drawn for the block. Seen batch after batch, so kept."""
    deck: Longs = np.repeat(np.arange(len(counts)), counts)
    return deck[permuted(np.arange(len(deck)), len(deck), bits(seed, "mixture"), block)]


def _counted(order: Longs, place: int, count: int, had: list[int]) -> list[tuple[int, int]]:
    """(source, how many it had before) at the places place, ..., place + count - 1; had: before the first of them."""
    found = []
    for s in order[place : place + count].tolist():
        found.append((s, had[s]))
        had[s] += 1
    return found


class Ending:
    """Fixed shares, `counts[s]` of a cycle, among sources that end: `most[s]` sub-batches are source s's at all. The
    turn at which one ends is found in the cycle where it does, and from there the others share; so a seek costs a look
    at each end."""

    def __init__(self, counts: Sequence[int], most: Sequence[float], seed: int) -> None:
        self.counts, self.most, self.seed = list(counts), list(most), seed
        self._spans: list[_Span] = []

    @property
    def total(self) -> float:
        return sum(m for c, m in zip(self.counts, self.most, strict=True) if c)

    def sources(self, start: int, count: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while count:
            span = self._span(start)
            here = int(min(count, span.stop - start))
            found += [(s, span.had[s] + n) for s, n in span.mixture.sources(start - span.start, here)]
            start, count = start + here, count - here
        return found

    def had(self, turn: int) -> list[int]:
        if turn == 0:
            return [0] * len(self.most)
        span = self._span(turn - 1)
        return [a + b for a, b in zip(span.had, span.mixture.had(turn - span.start), strict=True)]

    def _span(self, turn: int) -> _Span:
        """The stretch of equal shares that the turn is in."""
        while not self._spans or turn >= self._spans[-1].stop:
            start = int(self._spans[-1].stop) if self._spans else 0
            had = self.had(start)
            left = tuple(c if n < m else 0 for c, m, n in zip(self.counts, self.most, had, strict=True))
            if not any(left):
                raise ValueError(f"sub-batch {turn} of {start}: every source has ended")
            mixture = Mixture(left, bits(self.seed, "ended", len(self._spans)) if self._spans else self.seed)
            room = [m - n for m, n in zip(self.most, had, strict=True)]
            self._spans.append(_Span(start, start + _end(mixture, room), had, mixture))
        return next(s for s in reversed(self._spans) if s.start <= turn)


@dataclass(frozen=True)
class _Span:
    start: int
    stop: float
    had: list[int]
    mixture: Mixture


def _end(mixture: Mixture, room: Sequence[float]) -> float:
    """The turn behind which the first source of the mixture has had its room; infinite where none ever has."""
    last = {s: divmod(int(room[s]) - 1, c) for s, c in enumerate(mixture.counts) if c and room[s] < math.inf}
    first = min((cycle for cycle, _ in last.values()), default=0)
    ends = [math.inf]
    for s, (cycle, rest) in last.items():
        if cycle == first:
            ends.append(cycle * mixture.cycle + int(np.flatnonzero(mixture.order(cycle) == s)[rest]) + 1)
    return min(ends)


class Blocks:
    """Blocks of `length` sub-batches. `shares(b)` are those of block b (any positive sum); what rounding owes a source
    in one block it gets in the next. most: sub-batches that each source has at all; once it had them, the others share
    its turns. A block is dealt once, in order, and found again by its number."""

    def __init__(self, shares: Callable[[int], Sequence[float]], length: int, most: Sequence[float], seed: int) -> None:
        self.shares, self.length, self.seed = shares, length, seed
        self.most = np.asarray(most, dtype=np.float64)
        self._had: list[NDArray[np.int64]] = [np.zeros(len(most), dtype=np.int64)]  # before each block
        self._owed: list[NDArray[np.float64]] = [np.zeros(len(most))]

    @property
    def total(self) -> float:
        return float(self.most.sum())

    def forget(self, block: int) -> None:
        """Deal the blocks from this one on anew: their shares have changed."""
        del self._had[block + 1 :], self._owed[block + 1 :]

    def sources(self, start: int, count: int) -> list[tuple[int, int]]:
        if start + count > self.total:
            raise ValueError(f"sub-batches {start} to {start + count - 1} of {int(self.total)}: every source has ended")
        found: list[tuple[int, int]] = []
        while count:
            block, place = divmod(start, self.length)
            before, order = self._dealt(block)
            here = min(count, len(order) - place)
            if here <= 0:  # those that have not ended have no share by now
                raise ValueError(f"sub-batch {start}: every source that has a share in block {block} has ended")
            had = before + np.bincount(order[:place], minlength=len(before))
            found += _counted(order, place, here, had.tolist())
            start, count = start + here, count - here
        return found

    def had(self, turn: int) -> list[int]:
        """Raises ValueError where there is no such turn, for want of a source that has a share and has not ended."""
        block, place = divmod(turn, self.length)
        if place == 0 and block == 0:
            return [0] * len(self.most)
        block, place = (block, place) if place else (block - 1, self.length)
        before, order = self._dealt(block)
        if place > len(order):
            raise ValueError(f"sub-batch {turn - 1}: every source that has a share in block {block} has ended")
        return [int(n) for n in before + np.bincount(order[:place], minlength=len(before))]

    def _dealt(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What each source had before the block, and the sources of its sub-batches in order."""
        while len(self._had) <= block + 1:
            b = len(self._had) - 1
            counts, owed = deal(self.shares(b), self.length, self.most - self._had[b], self._owed[b])
            self._had.append(self._had[b] + counts)
            self._owed.append(owed)
        dealt = self._had[block + 1] - self._had[block]
        return self._had[block], _shuffled(tuple(dealt.tolist()), self.seed, block)


@dataclass(frozen=True)
class Held:
    """A source keeps its turn for `hold` sub-batches."""

    turns: Turns
    hold: int

    @property
    def total(self) -> float:
        return self.turns.total * self.hold

    def sources(self, start: int, count: int) -> list[tuple[int, int]]:
        first = start // self.hold
        units = self.turns.sources(first, (start + count - 1) // self.hold - first + 1)
        found = []
        for j in range(start, start + count):
            source, before = units[j // self.hold - first]
            found.append((source, before * self.hold + j % self.hold))
        return found

    def had(self, turn: int) -> list[int]:
        unit, rest = divmod(turn, self.hold)
        had = [n * self.hold for n in self.turns.had(unit)]
        if rest:
            had[self.turns.sources(unit, 1)[0][0]] += rest
        return had


def deal(
    shares: Sequence[float], length: int, room: NDArray[np.float64], owed: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`length` turns by shares, none above its room, and what is owed to each source behind them. Fewer turns only
    where no room is left. owed: from before; a source without a share, or without room, is owed nothing."""
    weights = np.asarray(shares, dtype=np.float64)
    counts = np.zeros(len(weights), dtype=np.int64)
    active, left = (weights > 0) & (room > 0), length
    while active.any():
        want = np.where(active, owed + left * weights / weights[active].sum(), 0.0)
        full = active & (want >= room)
        if not full.any():
            break
        counts[full] = room[full].astype(np.int64)
        left -= int(counts[full].sum())
        active &= ~full
        if left <= 0:  # what was owed before went to those that are full now
            return _within(counts, length), np.zeros(len(weights))
    if not active.any():
        return counts, np.zeros(len(weights))
    whole = np.where(active, np.floor(np.maximum(want, 0) + _ROUND), 0).astype(np.int64)
    while (missing := left - int(whole.sum())) != 0:
        step = 1 if missing > 0 else -1
        able = active & (whole + step <= room) & (whole + step >= 0)
        order = np.argsort(np.where(able, step * (whole - want), np.inf), kind="stable")
        whole[order[: min(abs(missing), int(able.sum()))]] += step
        if not able.any():
            break
    return counts + whole, np.where(active, want - whole, 0.0)


def _within(counts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """At most `length` in all: the last are cut."""
    cut: NDArray[np.int64] = np.diff(np.minimum(counts.cumsum(), length), prepend=0)
    return cut


def schedule(weights: Sequence[float], seed: int, most: Sequence[float] = ()) -> Turns:
    """Turns by the shares weights / sum(weights). Where a cycle of at most 1,024 sub-batches meets them, every cycle
    does; else they are met to about one turn at the end of every block. most: sub-batches of each source at all, where
    it ends. A weight of 0 is never drawn."""
    shares = checked(weights)
    most = list(most) or [math.inf] * len(shares)
    ends = min(most) < math.inf
    if counts := short_cycle(shares):
        return Ending(counts, most, seed) if ends else Mixture(counts, seed)
    open_ = [m if w > 0 else 0.0 for m, w in zip(most, shares, strict=True)]
    fixed = shares.tolist()
    return Blocks(lambda block: fixed, _CYCLE if ends else _LONG, open_, seed)


def short_cycle(weights: Sequence[float] | NDArray[np.float64]) -> tuple[int, ...]:
    """Each source's turns in the shortest cycle that meets the shares exactly; () where none is short."""
    shares = np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum()
    for cycle in range(1, _CYCLE + 1):
        turns = shares * cycle
        if np.abs(turns - turns.round()).max() < 1e-9 * cycle and (turns.round() > 0)[shares > 0].all():
            return tuple(int(t) for t in turns.round())
    return ()


def checked(weights: Sequence[float]) -> NDArray[np.float64]:
    """Raises ValueError for weights that share nothing out."""
    shares = np.asarray(weights, dtype=np.float64)
    if not len(shares) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise ValueError(f"weights {list(weights)}: expected finite numbers, none negative and one positive at least")
    return shares
