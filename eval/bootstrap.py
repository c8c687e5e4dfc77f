"""Bootstrap over queries: the 95% interval of a mean, of a difference of two means, and of Spearman's correlation.

A draw is a row of counts: how often each query was drawn. Two models scored under the same draws are compared in pairs.
Percentile intervals (Efron, 1979): on fewer than 30 queries, or at a score of exactly 0 or 1, they are too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..data.types import digest
from .types import TaskReport

DRAWS = 1000
_CELLS = 1 << 22  # of one block of counts: 32 MiB


def counts(n: int, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """Blocks (b, n) of int64 counts, `draws` rows in all, each summing to n; the same for the same arguments."""
    rng = np.random.default_rng([seed, n])
    size = max(1, _CELLS // max(n, 1))
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        cells = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(cells.ravel(), minlength=rows * n).reshape(rows, n)


def means(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means of values (n, M) under every draw: (draws, M)."""
    n = len(values)
    return np.concatenate([block.astype(np.float64) @ values / n for block in counts(n, draws, seed)])


def spearmans(a: np.ndarray, b: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Spearman's correlation of the pairs (a, b), each (n,), under every draw: (draws,). A constant draw gives 0."""
    return np.concatenate([_weighted(a, b, block) for block in counts(len(a), draws, seed)])


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The middle 95% of drawn (draws,)."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def seed_of(task_digest: str, seed: int = 0) -> int:
    """A task's own seed: tasks are drawn independently of each other, models on one task are not."""
    return int(digest(str(seed), task_digest)[:8], 16)


def main(task: TaskReport, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The task's main metric under every draw, (draws,)."""
    values, own = np.array(task.score.per_query, np.float64), seed_of(task.digest, seed)
    if task.kind == "sts":
        return spearmans(task.ranking.scores[:, 0], values, draws, own)
    return means(values[:, None], draws, own)[:, 0]


def _weighted(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Correlation of mean ranks where pair i stands weight[:, i] times."""
    total = weight.sum(1, keepdims=True)
    x, y = (_mean_ranks(v, weight) - (total + 1) / 2 for v in (a, b))
    covariance = (weight * x * y).sum(1)
    norm = np.sqrt((weight * x * x).sum(1) * (weight * y * y).sum(1))
    ratio: np.ndarray = np.divide(covariance, norm, out=np.zeros_like(norm), where=norm > 0)
    return ratio


def _mean_ranks(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(b, n) mean ranks of values (n,) in samples that hold value i weight[:, i] times."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    held = np.add.reduceat(weight[:, order], starts, axis=1)  # (b, distinct values)
    rank = np.cumsum(held, axis=1) - (held - 1) / 2
    group = np.empty(len(values), np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return rank[:, group]
