"""Seeded choices: equal words give equal choices, in every process and on every day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from ..types import digest

T = TypeVar("T")


class Dice:
    """Choices drawn from a generator whose seed is the digest of `words`, so that no sample depends on another."""

    def __init__(self, *words: str | int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(int(digest(*map(str, words)), 16)))

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1."""
        return int(self._rng.integers(n))

    def chance(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)

    def between(self, low: float, high: float) -> float:
        return float(low + (high - low) * self._rng.random())

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different places of `options`, in random order."""
        return [options[int(i)] for i in self._rng.permutation(len(options))[:count]]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return self.some(options, len(options))
