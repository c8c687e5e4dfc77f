"""Which source gives the next sub-batch: a Feed is one source in a stage, a Mix says how the feeds share the batches.

A batch is made of sub-batches of one source each (VLM2Vec-V2, arXiv:2507.04590): hard enough because alike, varied
because many. data/turns.py deals them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .counter import bits, permuted
from .instructions import Instructions
from .patterns import Draw, Pattern
from .schedules import Schedule, ends
from .types import Limits, Source, Step

_CYCLE = 1024  # the longest cycle that is searched for an exact share; beyond it shares are rounded
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Feed:
    """One source in a stage, and what is drawn from each of its rows.

    weight: its share of the sub-batches, against the other feeds'. objective: the stage's objective that its rows go
    to. limits: its own, instead of the stage's. positives, negatives: how many are drawn a row, at most. hardness: from
    which of a row's negatives, hardest first: 0 from all, 1 the first ones only. instruction, target_instruction:
    instead of the rows' own; instructions: by task, one of several a draw. answers: whether the rows' answers are
    trained on. sub_batch: rows of its sub-batches, 0 for the stage's (CoDiEmb's batch size by task, arXiv:2508.11442).
    epochs: how often its rows are gone through at most, up to a whole sub-batch; then the others share its turns.
    clusters: a Cluster step (or its folder), whose groups of alike rows stay together (B3, arXiv:2505.11293).
    patterns: which fields form query and target; draw: one pattern a row, or all that it can form; missing: what
    becomes of a row that can form none. shots: demonstrations in front of a query, drawn from other rows of the source
    (arXiv:2506.07438).
    """

    source: Source
    weight: float | Schedule = 1.0
    objective: str = "default"
    limits: Limits | None = None
    positives: int = 1
    negatives: int | Schedule = 0
    hardness: float | Schedule = 0.0
    instruction: str | None = None
    target_instruction: str | None = None
    instructions: Instructions | None = None
    answers: bool = True
    sub_batch: int = 0
    epochs: float = math.inf
    clusters: Step | str = ""
    patterns: tuple[Pattern, ...] = ()
    draw: Draw = "one"
    missing: Literal["raise", "skip"] = "raise"
    shots: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("weight", 0.0, math.inf),
            ("positives", 0, math.inf),
            ("negatives", 0, math.inf),
            ("hardness", 0, 1),
            ("sub_batch", 0, math.inf),
            ("shots", 0, math.inf),
        ):
            value = getattr(self, name)
            if not all(least <= end <= most for end in ends(value)):
                known = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
                raise ValueError(f"feed {self.source.name!r}: {name}={value}; expected {known}")
        if not self.epochs > 0:
            raise ValueError(f"feed {self.source.name!r}: epochs={self.epochs}; expected more than 0")
        for name, words in (("draw", get_args(Draw)), ("missing", ("raise", "skip"))):
            if getattr(self, name) not in words:
                known = " or ".join(map(repr, words))
                raise ValueError(f"feed {self.source.name!r}: {name}={getattr(self, name)!r}; expected {known}")


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
