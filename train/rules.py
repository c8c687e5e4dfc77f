"""Rules that choose negatives: frozen values with a pure method each, applied one behind the other to blocks of rows.

Most keep or drop candidates; `Consistent` drops rows, `PositiveAbove` positives. What no rule can bring back is never a
candidate at all: right answers, known ids, the query itself, and documents of the query's own label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .judge import Judging

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Longs = NDArray[np.int64]

LEFT, SHORT = -1, -2  # in place of the number of the rule that dropped a candidate: kept, and beyond a short list


@dataclass(frozen=True)
class View:
    """n rows, each with k candidates, hardest first, and its p positives.

    score (n, k): cosine of query and candidate, NaN beyond a short list. positive (n, p): of query and positive, NaN
    beyond the row's own and where an earlier rule dropped it. kept (n, k): what earlier rules have left. rank (k,): of
    a candidate, from 1; right answers have none. ask: judges the candidates of a mask, and every positive.
    """

    score: Floats
    positive: Floats
    kept: Bools
    ask: Ask | None = None

    @property
    def rank(self) -> Longs:
        return np.arange(1, self.score.shape[1] + 1)

    @property
    def least(self) -> Floats:
        """(n, 1) of the positives that are left, the least like the query: the safe one to stay below."""
        return _over(np.nanmin, self.positive)

    @property
    def most(self) -> Floats:
        return _over(np.nanmax, self.positive)

    @property
    def mean(self) -> Floats:
        return _over(np.nanmean, self.positive)


Ask = Callable[["BelowJudged", Bools, View], tuple[Floats, Floats]]  # (n, k) and (n, p), NaN where not asked


class Rule(Protocol):
    """Which candidates may stay (n, k). A rule may say what it asks for in `told`, and have a `bound`."""

    def keep(self, view: View) -> Bools: ...


class RowRule(Protocol):
    """Which rows may stay (n,)."""

    def rows(self, view: View) -> Bools: ...


class PositiveRule(Protocol):
    """Which positives may stay (n, p); a row that has none left goes."""

    def positives(self, view: View) -> Bools: ...


AnyRule = Rule | RowRule | PositiveRule


@dataclass(frozen=True)
class RankRange:
    """Ranks first ... last of the search. The first ones may be right answers that nobody labelled (arXiv:2007.00808
    takes any of the top 200; ranks 50 to 100 or 30 to 130 are usual since)."""

    first: int = 50
    last: int = 100

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ValueError(f"RankRange({self.first}, {self.last}): expected 1 <= first <= last")

    @property
    def told(self) -> str:
        return f"ranks {self.first} to {self.last} of the search stay"

    def keep(self, view: View) -> Bools:
        inside: Bools = (view.rank >= self.first) & (view.rank <= self.last)
        return np.broadcast_to(inside, view.score.shape)


@dataclass(frozen=True)
class PercentOfPositive:
    """s(q, n) < share of s(q, p): TopK-PercPos of NV-Retriever (arXiv:2407.15831), the adaptive margin of LG-ANNA
    (arXiv:2506.07438, whose prose has the sign turned).

    p: the row's positive that is least like the query. The bound is s - (1 - share) |s|: where s is negative, a share
    of it would lie above the positive itself, and let in what is nearer to the query than the right answer.
    """

    share: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"PercentOfPositive({self.share}): expected more than 0, and 1 at most")

    @property
    def told(self) -> str:
        return f"below {self.share:g} of the cosine of the row's least likely right answer"

    def bound(self, view: View) -> Floats:
        least = view.least.astype(np.float64)
        return (least - (1 - self.share) * np.abs(least)).astype(np.float32)

    def keep(self, view: View) -> Bools:
        return _below(view.score, self.bound(view))


@dataclass(frozen=True)
class Below:
    """s(q, n) < most: U-MARVEL takes 0.7 (arXiv:2507.14902). Where a model's cosines lie is its own: look first."""

    most: float = 0.7

    @property
    def told(self) -> str:
        return f"below a cosine of {self.most:g}"

    def bound(self, view: View) -> Floats:
        return np.full((len(view.score), 1), self.most, np.float32)

    def keep(self, view: View) -> Bools:
        return _below(view.score, self.bound(view))


@dataclass(frozen=True)
class Above:
    """s(q, n) > least: candidates that any model tells from the query teach nothing."""

    least: float = 0.0

    @property
    def told(self) -> str:
        return f"above a cosine of {self.least:g}"

    def keep(self, view: View) -> Bools:
        return ~_below(view.score, np.nextafter(np.float32(self.least), np.float32(2)))


@dataclass(frozen=True)
class MarginToMean:
    """s(q, n) < mean of the row's s(q, p) + delta (Qwen3-VL-Embedding, arXiv:2601.04720). A delta below 0 asks for a
    distance; above 0 it lets in what is a little nearer than the right answers, which are then worth refining first:
    PositiveAbove before it."""

    delta: float = 0.0

    @property
    def told(self) -> str:
        return f"below the mean cosine of the row's right answers {self.delta:+g}"

    def bound(self, view: View) -> Floats:
        return view.mean + np.float32(self.delta)

    def keep(self, view: View) -> Bools:
        return _below(view.score, self.bound(view))


@dataclass(frozen=True)
class Consistent:
    """Drops the row where no positive would stand among the first `top` candidates: query and answer do not fit, or the
    model does not see why (consistency filtering, arXiv:2209.11755)."""

    top: int = 50

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"Consistent({self.top}): expected 1 or more")

    @property
    def told(self) -> str:
        return f"rows whose best right answer stands among the first {self.top}"

    def rows(self, view: View) -> Bools:
        with np.errstate(invalid="ignore"):
            before = (view.score > view.most).sum(1)
        kept: Bools = before < self.top
        return kept


@dataclass(frozen=True)
class PositiveAbove:
    """Positives with s(q, p) > least stay, others are dropped but remain known, so that they are no negatives either; a
    row without any left goes (Qwen3-VL-Embedding, arXiv:2601.04720)."""

    least: float = 0.3

    @property
    def told(self) -> str:
        return f"right answers above a cosine of {self.least:g}; rows that have none go"

    def positives(self, view: View) -> Bools:
        with np.errstate(invalid="ignore"):
            kept: Bools = view.positive > np.float32(self.least)
        return kept


@dataclass(frozen=True)
class BelowJudged:
    """judge(q, n) < judge(q, p) - beta: what a judge that reads both finds about as right as the answer goes (UniME-V2,
    arXiv:2510.13515). p: the positive that the judge likes least.

    first: so many of what earlier rules have left are judged, the rest goes; 0: all. Judging is dear: put it last.
    The judge's scores are kept in scores["rerank"].
    """

    judge: Judging
    beta: float = 0.01
    first: int = 50

    def __post_init__(self) -> None:
        if self.first < 0:
            raise ValueError(f"BelowJudged: first={self.first}; expected 0 (all) or more")

    @property
    def told(self) -> str:
        first = f"the first {self.first}" if self.first else "all"
        return f"of {first} that are left, those judged more than {self.beta:g} below the right answer"

    def keep(self, view: View) -> Bools:
        if view.ask is None:
            raise ValueError("BelowJudged: nobody to ask; it works inside Mine only")
        asked = view.kept if not self.first else view.kept & (np.cumsum(view.kept, axis=1) <= self.first)
        candidates, positive = view.ask(self, asked, view)
        return asked & _below(candidates, _over(np.nanmin, positive) - np.float32(self.beta))


@dataclass(frozen=True)
class Verdict:
    """What became of n rows. by (n, k) int8: the number of the rule that dropped a candidate, LEFT or SHORT. positive
    (n, p): which positives stay. row (n,) int8: the rule that dropped a row, or LEFT."""

    by: NDArray[np.int8]
    positive: Bools
    row: NDArray[np.int8]

    @property
    def kept(self) -> Bools:
        kept: Bools = (self.by == LEFT) & (self.row == LEFT)[:, None]
        return kept


def chain(rules: Sequence[AnyRule], view: View) -> Verdict:
    """The rules one behind the other: each sees what those before it have left. Once dropped, a row stays dropped."""
    there = ~np.isnan(view.score)
    by = np.where(there, np.int8(LEFT), np.int8(SHORT))
    row = np.full(len(by), LEFT, np.int8)
    positive = ~np.isnan(view.positive)
    for number, rule in enumerate(rules):
        alive = row == LEFT
        kept = (by == LEFT) & alive[:, None]
        seen = replace(view, kept=kept, positive=np.where(positive, view.positive, np.float32(np.nan)))
        if is_row_rule(rule):
            row[alive & ~rule.rows(seen)] = number  # type: ignore[union-attr]
        elif is_positive_rule(rule):
            positive &= rule.positives(seen) | ~alive[:, None]  # type: ignore[union-attr]
            row[alive & ~positive.any(1)] = number
        else:
            by[kept & ~rule.keep(seen)] = number  # type: ignore[union-attr]
    return Verdict(by, positive, row)


def bound(rule: AnyRule, view: View) -> Floats | None:
    """(n, 1) the cosine that candidates must stay below, where the rule has one."""
    of = getattr(rule, "bound", None)
    found: Floats | None = of(view) if callable(of) else None
    return found


def is_row_rule(rule: AnyRule) -> bool:
    return callable(getattr(type(rule), "rows", None))


def is_positive_rule(rule: AnyRule) -> bool:
    return callable(getattr(type(rule), "positives", None))


def _below(score: Floats, most: Floats | np.float32) -> Bools:
    """Where the score is below; beyond a short list, and where there is no bound, it is not."""
    with np.errstate(invalid="ignore"):
        below: Bools = score < np.asarray(most, np.float32)
    return below


def _over(function: Callable[..., Floats], values: Floats) -> Floats:
    """A NaN-blind reduction of (n, p) to (n, 1), NaN where nothing is there."""
    empty: Bools = np.asarray(np.isnan(values).all(1))
    filled = np.where(empty[:, None], np.float32(0), values)
    found = function(filled, axis=1).astype(np.float32) if values.shape[1] else np.zeros(len(values), np.float32)
    out: Floats = np.asarray(np.where(empty, np.nan, found), np.float32).reshape(-1, 1)
    return out
