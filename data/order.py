"""Which rows are batch t: a pure function of (sources, feeds, mix, seed, t) and the mixer's state, and so a seek.

A source's draws run through its deck epoch by epoch. A sub-batch may reach over the end of an epoch: what is left of it
is not lost, and the next epoch goes on in the same sub-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .clusters import grouped
from .deck import WINDOW, Deck
from .mix import Feed, Mix, Weighted, folder_of
from .schedules import Phases, Ramp, at, ends
from .turns import Blocks, Held, Turns, checked, schedule
from .types import Rows, Where

_ROUND = 1e-9  # of a sub-batch: 1.1 epochs of 100 rows are 110
_FINE = 100  # blocks of a stage whose weights are scheduled


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
    """decks: one a source; turns: whose sub-batches come when; each: sub-batches a batch; rows: of a source's
    sub-batch."""

    decks: tuple[Deck, ...]
    turns: Turns
    each: int
    rows: tuple[int, ...]
    seed: int

    @staticmethod
    def of(sizes: Sequence[int], weights: Sequence[float], batch: int, sub_batch: int, seed: int) -> Order:
        """Sources of one block each, with fixed weights."""
        if len(sizes) != len(weights):
            raise ValueError(f"{len(sizes)} sources and {len(weights)} weights; expected one weight each")
        for s, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            if size < 1 and weight > 0:
                raise ValueError(f"source {s} has no rows, but weight {weight}; give it rows or leave it out")
        decks = tuple(Deck(np.array([size], dtype=np.int64)) for size in sizes)
        each = per_batch(batch, sub_batch)
        return Order(decks, schedule(weights, seed), each, (sub_batch,) * len(sizes), seed)

    @property
    def steps(self) -> float:
        """Whole batches until the sources have ended; infinite where one goes on."""
        return math.floor(self.turns.total / self.each) if self.turns.total < math.inf else math.inf

    def rows_of(self, step: int) -> list[Address]:
        """The rows of batch `step` (from 0), sub-batch by sub-batch."""
        return [
            Address(source, row, before * self.rows[source] + i, step)
            for source, before in self.turns.sources(step * self.each, self.each)
            for i, row in enumerate(
                self.decks[source].rows(before * self.rows[source], self.rows[source], self.seed, source)
            )
        ]

    def drawn(self, step: int) -> tuple[int, ...]:
        """Rows that each source has given before batch `step`."""
        return tuple(t * n for t, n in zip(self.turns.had(step * self.each), self.rows, strict=True))

    def fits(self, stop: int, ranks: int) -> None:
        """Raises ValueError unless every batch before `stop` is there, and holds a row for every rank."""
        drawn = self.turns.had(stop * self.each)
        fewest = min((n for n, had in zip(self.rows, drawn, strict=True) if had), default=ranks)
        if self.each * fewest < ranks:
            raise ValueError(
                f"a batch may be {self.each} sub-batches of {fewest} rows, fewer rows than the {ranks} ranks; raise "
                "sub_batch, or start fewer ranks"
            )

    def forget(self, block: int) -> None:
        """Deal the blocks of a mix that adapts anew, from this one on."""
        turns = self.turns.turns if isinstance(self.turns, Held) else self.turns
        if isinstance(turns, Blocks):
            turns.forget(block)

    def epochs(self, step: int) -> tuple[float, ...]:
        """How often each source has been gone through before batch `step`."""
        return tuple(n / max(1, deck.size) for n, deck in zip(self.drawn(step), self.decks, strict=True))


def per_batch(batch: int, sub_batch: int) -> int:
    if batch < 1 or sub_batch < 1 or batch % sub_batch:
        raise ValueError(
            f"batch={batch} is not a whole number of sub-batches of {sub_batch} rows; "
            "choose sub_batch from the divisors of batch"
        )
    return batch // sub_batch


@dataclass(frozen=True)
class Setting:
    """How a stage orders its batches. steps: of the stage, for what hangs on progress; 0: no end in sight, progress
    stays 0."""

    batch: int
    sub_batch: int
    seed: int
    steps: int = 0
    mix: Mix = field(default_factory=Weighted)
    window: int = WINDOW


def ordered(
    rows: Sequence[Rows],
    feeds: Sequence[Feed],
    factors: Sequence[float],
    setting: Setting,
    told: Sequence[Sequence[int]] = (),
    where: Where | None = None,
) -> Order:
    """The order of a stage's batches. factors: the mix's, one a feed. told: what an adaptive mix has found for its
    blocks 1, 2, ...; a block that it has not found yet is dealt by the last that it has."""
    each = per_batch(setting.batch, setting.sub_batch)
    hold = setting.mix.hold * each
    for source, feed in zip(rows, feeds, strict=True):
        if not len(source) and feed.weight != 0:
            given = f"source {source.name!r} has no rows, but weight {feed.weight}"
            raise ValueError(f"{given}; give it rows or leave it out")
    decks = tuple(deck(r, f, setting.window, where) for r, f in zip(rows, feeds, strict=True))
    counts = tuple(f.sub_batch or setting.sub_batch for f in feeds)
    most = [
        math.ceil(f.epochs * d.size / n - _ROUND) if f.epochs < math.inf else math.inf
        for f, d, n in zip(feeds, decks, counts, strict=True)
    ]
    for source, feed, count in zip(rows, feeds, counts, strict=True):
        if hold > 1 and hold * count > (wanted := feed.epochs * len(source)):
            raise ValueError(
                f"feed {source.name!r}: a turn of {setting.mix.hold} steps is {hold * count:,} rows, more than the "
                f"{wanted:,.0f} of epochs={feed.epochs:g}; give it more epochs, or the mix fewer steps"
            )
    turns = _turns(feeds, factors, setting, most, each, hold or 1, told)
    return Order(decks, Held(turns, hold) if hold > 1 else turns, each, counts, setting.seed)


def deck(rows: Rows, feed: Feed, window: int, where: Where | None) -> Deck:
    """A source's rows in shards, or in the clusters that its feed names."""
    if not feed.clusters:
        return Deck.of(rows, window)
    members, ends = grouped(folder_of(feed.clusters, where), rows)
    return Deck(ends, 1, members)


def dry(stop: int, order: Order, rows: Sequence[Rows], feeds: Sequence[Feed]) -> str:
    """Why a run to `stop` is refused: all sources have ended before."""
    given = ", ".join(f"{r.name} {f.epochs:g} x {len(r):,} rows" for r, f in zip(rows, feeds, strict=True))
    return (
        f"{stop:,} steps asked, but all sources have ended after {int(order.steps):,} ({given}); lower steps, or let "
        "one source go on (epochs)"
    )


def _turns(
    feeds: Sequence[Feed],
    factors: Sequence[float],
    setting: Setting,
    most: Sequence[float],
    each: int,
    hold: int,
    told: Sequence[Sequence[int]],
) -> Turns:
    adaptive = setting.mix.adaptive
    moving = any(isinstance(f.weight, Ramp | Phases) for f in feeds)
    first = weights_at(feeds, factors, 0.0)
    for f in feeds:
        if isinstance(f.weight, Phases) and (gap := f.weight.shortest) < 1 / _FINE - _ROUND:
            raise ValueError(
                f"feed {f.source.name!r}: a phase of {gap:.3g} of the stage; weights follow it by hundredths"
            )
    for p in range(1, _FINE if moving else 1):  # so that a stage does not end at its middle
        weights_at(feeds, factors, p / _FINE)
    if adaptive is None and not moving:
        return schedule(first, setting.seed, [math.ceil(m / hold) if m < math.inf else m for m in most])
    if adaptive is not None:
        if moving:
            raise ValueError("a mix that adapts and weights that are scheduled: the shares can follow one of them only")
        steps = adaptive.every
    else:
        steps = max(1, setting.steps // _FINE)
    length = max(1, steps * each // hold)
    if adaptive is not None and length * hold != steps * each:
        raise ValueError(f"Adaptive(every={steps}): expected a multiple of the {hold // each} steps that a source has")
    ever = [max(ends(f.weight)) * x > 0 for f, x in zip(feeds, factors, strict=True)]
    room = [math.ceil(m / hold) if e and m < math.inf else m if e else 0.0 for m, e in zip(most, ever, strict=True)]
    return Blocks(_shares(feeds, factors, setting, length * hold / each, told), length, room, setting.seed)


def _shares(
    feeds: Sequence[Feed], factors: Sequence[float], setting: Setting, steps: float, told: Sequence[Sequence[int]]
) -> Callable[[int], Sequence[float]]:
    def shares(block: int) -> Sequence[float]:
        if setting.mix.adaptive is not None and block and told:
            return told[min(block, len(told)) - 1]
        return weights_at(feeds, factors, block * steps / setting.steps if setting.steps else 0.0)

    return shares


def weights_at(feeds: Sequence[Feed], factors: Sequence[float], progress: float) -> list[float]:
    """The feeds' weights at a progress. Raises ValueError where they sum to nothing."""
    weights = [at(f.weight, progress) * x for f, x in zip(feeds, factors, strict=True)]
    try:
        checked(weights)
    except ValueError as error:
        names = ", ".join(f.source.name for f in feeds)
        raise ValueError(f"sources {names} at progress {progress:.2f} of the stage: {error}") from None
    return weights
