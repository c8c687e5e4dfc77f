"""Ranking metrics of one query, and Spearman's correlation: pure functions of ranks.

`ranks` are the ranks (from 1) of a query's right answers, made unique; `gains` their relevance, in the same order.
Definitions are those of MMEB's evaluator (arXiv:2507.04590): precision@k divides by k even where the pool is smaller,
AP@k by min(right answers, k), and the ideal of nDCG is the sorted relevance cut at k. k=None: the whole ranking.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import log2

import numpy as np

Ranks = Sequence[int]
Gains = Sequence[float]


def hit(ranks: Ranks, k: int) -> float:
    return float(any(r <= k for r in ranks))


def precision(ranks: Ranks, k: int) -> float:
    return sum(r <= k for r in ranks) / k


def recall(ranks: Ranks, k: int) -> float:
    return sum(r <= k for r in ranks) / len(ranks)


def f1(ranks: Ranks, k: int) -> float:
    """Harmonic mean of precision@k and recall@k: 2 found / (k + right answers)."""
    return 2 * sum(r <= k for r in ranks) / (k + len(ranks))


def reciprocal_rank(ranks: Ranks, k: int | None = None) -> float:
    best = min(ranks)
    return 1 / best if k is None or best <= k else 0.0


def average_precision(ranks: Ranks, k: int | None = None) -> float:
    found = sorted(r for r in ranks if k is None or r <= k)
    return sum(i / r for i, r in enumerate(found, 1)) / (len(ranks) if k is None else min(len(ranks), k))


def ndcg(ranks: Ranks, gains: Gains, k: int | None = None, *, exponential: bool = False) -> float:
    worth = [2**g - 1 if exponential else g for g in gains] or [1.0] * len(ranks)
    reached = sum(w / log2(r + 1) for w, r in zip(worth, ranks, strict=True) if k is None or r <= k)
    return reached / ideal(worth, k)


def ideal(worth: Sequence[float], k: int | None = None) -> float:
    return sum(w / log2(i + 1) for i, w in enumerate(sorted(worth, reverse=True)[:k], 1))


def parse(name: str) -> tuple[str, int | None]:
    """A metric's name as (family, k): "recall@5" is ("recall", 5), "mrr" is ("mrr", None)."""
    match = re.fullmatch(r"([a-z0-9_]+?)(?:@(\d+))?", name)
    if not match or match[1] not in FAMILIES or (match[2] is None and match[1] not in UNCUT):
        raise ValueError(
            f"metric {name!r} is not known; known are {', '.join(sorted(FAMILIES))}, each with @k behind it"
        )
    return match[1], int(match[2]) if match[2] else None


def value(name: str, ranks: Ranks, gains: Gains = ()) -> float:
    """The metric called `name` of one query."""
    family, k = parse(name)
    return FAMILIES[family](ranks, gains, k)


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Rank correlation of two lists of n numbers, ties at their mean rank; 0 where either is constant."""
    x, y = (mean_ranks(np.asarray(v, np.float64)) for v in (a, b))
    if len(x) != len(y):
        raise ValueError(f"spearman: {len(x)} and {len(y)} numbers; they must be pairs")
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else 0.0


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """(n,) ranks from 1, equal values at the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def _linear(ranks: Ranks, gains: Gains, k: int | None) -> float:
    return ndcg(ranks, gains, k)


def _exponential(ranks: Ranks, gains: Gains, k: int | None) -> float:
    return ndcg(ranks, gains, k, exponential=True)


def _with_k(metric: Callable[[Ranks, int], float]) -> Callable[[Ranks, Gains, int | None], float]:
    def call(ranks: Ranks, gains: Gains, k: int | None) -> float:
        assert k is not None  # parse lets only UNCUT families go without
        return metric(ranks, k)

    return call


FAMILIES: dict[str, Callable[[Ranks, Gains, int | None], float]] = {
    "hit": _with_k(hit),
    "precision": _with_k(precision),
    "recall": _with_k(recall),
    "f1": _with_k(f1),
    "mrr": lambda ranks, gains, k: reciprocal_rank(ranks, k),
    "map": lambda ranks, gains, k: average_precision(ranks, k),
    "ndcg_linear": _linear,
    "ndcg_exponential": _exponential,
}
UNCUT = ("mrr", "map", "ndcg_linear", "ndcg_exponential")
