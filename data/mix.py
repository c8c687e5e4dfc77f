"""Which source gives the next sub-batch: a Feed is one source in a stage, a Mixture deals the sub-batches out.

A batch is made of sub-batches of one source each (VLM2Vec-V2, arXiv:2507.04590): hard enough because alike, varied
because many. The deal is exact in every cycle, so how often a source has been drawn before is known without replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .counter import bits, permuted
from .types import Limits, Source

_CYCLE = 1024  # the longest cycle that is searched for an exact share; beyond it shares are rounded
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Feed:
    """One source in a stage, and what is drawn from each of its rows.

    weight: its share of the sub-batches, against the other feeds'. objective: the stage's objective that its rows go
    to. limits: its own, instead of the stage's. positives, negatives: how many are drawn a row, at most. instruction,
    target_instruction: instead of the rows' own. answers: whether the rows' answers are trained on.
    """

    source: Source
    weight: float = 1.0
    objective: str = "default"
    limits: Limits | None = None
    positives: int = 1
    negatives: int = 0
    instruction: str | None = None
    target_instruction: str | None = None
    answers: bool = True

    def __post_init__(self) -> None:
        for field, value, least in (
            ("weight", self.weight, 0.0),
            ("positives", self.positives, 0),
            ("negatives", self.negatives, 0),
        ):
            if not value >= least:
                raise ValueError(f"feed {self.source.name!r}: {field}={value}; expected {least} or more")


@dataclass(frozen=True)
class Mixture:
    """`counts[s]` of every `cycle` consecutive sub-batches are source s's, in an order drawn anew for each cycle."""

    counts: tuple[int, ...]
    seed: int

    @property
    def cycle(self) -> int:
        return sum(self.counts)

    def sources(self, start: int, count: int) -> list[tuple[int, int]]:
        """(source, how many sub-batches it had before) of the sub-batches start, ..., start + count - 1 of the run."""
        had: list[int] = []
        found: list[tuple[int, int]] = []
        deck = np.repeat(np.arange(len(self.counts)), self.counts)
        order = deck
        for j in range(start, start + count):
            cycle, place = divmod(j, self.cycle)
            if place == 0 or not had:
                order = deck[permuted(np.arange(self.cycle), self.cycle, bits(self.seed, "mixture"), cycle)]
                inside = np.bincount(order[:place], minlength=len(self.counts))
                had = [cycle * c + int(n) for c, n in zip(self.counts, inside, strict=True)]
            s = int(order[place])
            found.append((s, had[s]))
            had[s] += 1
        return found


def schedule(weights: Sequence[float], seed: int) -> Mixture:
    """The Mixture of the shares weights / sum(weights): in the shortest cycle that is exact, else by largest remainder
    in one long enough to give the smallest share 16 turns (a share under 1/65,536 is refused). A weight of 0 is never
    drawn."""
    shares = np.asarray(weights, dtype=np.float64)
    if not len(shares) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise ValueError(f"weights {list(weights)}: expected finite numbers, none negative and one positive at least")
    shares = shares / shares.sum()
    for cycle in range(1, _CYCLE + 1):
        turns = shares * cycle
        if np.abs(turns - turns.round()).max() < 1e-9 * cycle and (turns.round() > 0)[shares > 0].all():
            return Mixture(tuple(int(t) for t in turns.round()), seed)
    smallest = shares[shares > 0].min()
    cycle = max(_CYCLE, int(np.ceil(16 / smallest)))
    if cycle > _LONGEST:
        raise ValueError(
            f"weights {list(weights)}: the smallest share is {smallest:.2g}, less than {16 / _LONGEST:.2g}; "
            "raise it or leave that source out"
        )
    return Mixture(tuple(apportion(shares, cycle)), seed)


def apportion(shares: Sequence[float] | np.ndarray, total: int) -> list[int]:
    """Whole numbers that sum to total, nearest to shares (which sum to 1): the method of largest remainder."""
    exact = np.asarray(shares, dtype=np.float64) * total
    whole = np.floor(exact).astype(np.int64)
    for s in np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]:
        whole[s] += 1
    return [int(w) for w in whole]
