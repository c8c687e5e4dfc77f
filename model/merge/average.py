"""The mean of some models (model soups, arXiv:2203.05482), plain or weighted."""

from __future__ import annotations

from dataclasses import dataclass

from .types import Linear, shares


@dataclass(frozen=True)
class Average(Linear):
    """θ = mean of θ_i."""

    def coefficients(self, count: int) -> tuple[float, ...]:
        return shares((1.0,), count, "Average")


@dataclass(frozen=True)
class Weighted(Linear):
    """θ = Σ w_i θ_i / Σ w_i, one weight of 0 or more a model."""

    weights: tuple[float, ...]

    def coefficients(self, count: int) -> tuple[float, ...]:
        return shares(self.weights, count, "weights")
