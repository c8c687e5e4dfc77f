"""Which of the candidates that the rules have left become a row's negatives: the hardest, every nth, drawn, or of a
cluster's pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.clusters import digest_of
from ..data.counter import permuted, uniform
from ..data.types import Step, Where

Longs = NDArray[np.int64]


class Sample(Protocol):
    """At most `count` of `left` places, ascending."""

    def pick(self, left: Longs, count: int, seed: int, row: int) -> Longs: ...


@dataclass(frozen=True)
class Hardest:
    """The first ones."""

    def pick(self, left: Longs, count: int, seed: int, row: int) -> Longs:
        return left[:count]


@dataclass(frozen=True)
class Every:
    """The 1st, the (nth + 1)th, ...; where that ends too soon, again from the 2nd, and so on around: cyclic sampling of
    UniME-V2 (arXiv:2510.13515: every 5th, and 10 at least, so count=10), for negatives that differ from each other."""

    nth: int = 5

    def __post_init__(self) -> None:
        if self.nth < 1:
            raise ValueError(f"Every({self.nth}): expected 1 or more")

    def pick(self, left: Longs, count: int, seed: int, row: int) -> Longs:
        around = np.argsort(np.arange(len(left)) % self.nth, kind="stable")[:count]
        return left[np.sort(around)]


@dataclass(frozen=True)
class Drawn:
    """Any of them, each as likely: a pure function of seed and row."""

    def pick(self, left: Longs, count: int, seed: int, row: int) -> Longs:
        if len(left) <= count:
            return left
        return left[np.sort(permuted(np.arange(count), len(left), seed, "mine", row))]


@dataclass(frozen=True)
class Aggregated:
    """Of the pool of the row's cluster: candidate j as likely as it is frequent among what the rules have left to the
    rows there, so that a batch of whole clusters shares negatives that are hard for many of its queries (B3,
    arXiv:2505.11293, 5 a row). clusters: a Cluster step of the very same source, or its folder."""

    clusters: Step | str

    def outside(self, where: Where) -> Mapping[str, str]:
        """The digest of clusters that no step of the recipe made."""
        at = self.clusters
        return {f"clusters {at}": digest_of(Path(at))} if isinstance(at, str) else {}


def pooled(pool: Longs, times: Longs, barred: Longs, count: int, seed: int, row: int) -> Longs:
    """At most `count` candidates of `pool`, none of `barred`, without putting back, Pr(j) in proportion to times[j].

    The least of exponential variables with these rates; each is a pure function of seed, row and candidate, whatever
    else is in the pool.
    """
    free = ~np.isin(pool, barred)
    pool, times = pool[free], times[free]
    drawn = uniform(np.stack([np.full(len(pool), row), pool], axis=1), 1, seed, "aggregated")[:, 0]
    key = -np.log1p(-drawn) / times
    chosen: Longs = pool[np.argsort(key, kind="stable")[:count]]
    return chosen
