"""What a random ranking scores: the exact expectation of every metric under a uniform permutation of the pool.

n candidates, of which m are right. None of these is an estimate; tests hold them against all permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import log2

from .metrics import ideal, parse


def chance(name: str, n: int, m: int, gains: Sequence[float] = ()) -> float:
    """Expected value of the metric `name` for one query with a pool of n candidates, m right ones of these gains."""
    if not 0 < m <= n:
        raise ValueError(
            f"chance of {name}: {m} right answers among {n} candidates; at least 1 and at most all are needed"
        )
    return _chance(name, n, m, tuple(gains) or (1.0,) * m)


@lru_cache(maxsize=65536)  # queries of one task share a few (n, m)
def _chance(name: str, n: int, m: int, gains: tuple[float, ...]) -> float:
    family, k = parse(name)
    depth = n if k is None else min(k, n)
    found = depth * m / n  # right answers among the first `depth`
    match family:
        case "hit":
            return 1 - _all_wrong(n, m, depth)
        case "precision":
            return found / (k or n)
        case "recall":
            return found / m
        case "f1":
            return 2 * found / ((k or n) + m)
        case "mrr":
            return _reciprocal(n, m, depth)
        case "map":
            return _average_precision(n, m, depth) / (m if k is None else min(m, k))
        case _:
            worth = [2**g - 1 for g in gains] if family == "ndcg_exponential" else list(gains)
            discounts = sum(1 / log2(r + 1) for r in range(1, depth + 1))
            return sum(worth) / n * discounts / ideal(worth, k)


def _all_wrong(n: int, m: int, depth: int) -> float:
    """P(no right answer among the first `depth`) = C(n-m, depth) / C(n, depth), as a product that cannot overflow."""
    p = 1.0
    for i in range(min(m, n)):
        p *= max(n - depth - i, 0) / (n - i)
    return p


def _reciprocal(n: int, m: int, depth: int) -> float:
    """Sum over r of P(the first right answer has rank r) / r."""
    p, total = m / n, 0.0
    for r in range(1, min(depth, n - m + 1) + 1):
        total += p / r
        p *= (n - r - m + 1) / (n - r) if n > r else 0.0
    return total


def _average_precision(n: int, m: int, depth: int) -> float:
    """Sum over r of P(rank r is right) times the expected precision there: 1 + (r-1)(m-1)/(n-1), over r."""
    before = (m - 1) / (n - 1) if n > 1 else 0.0
    return sum(m / n * (1 + (r - 1) * before) / r for r in range(1, depth + 1))
