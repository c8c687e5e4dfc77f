"""Task arithmetic (arXiv:2212.04089): what each model learned is added to the base that all began from."""

from __future__ import annotations

from dataclasses import dataclass

from .types import Linear, each


@dataclass(frozen=True)
class TaskArithmetic(Linear):
    """θ = θ0 + Σ λ_i (θ_i - θ0). scales: λ, one a model or one for all; a negative one takes a task away."""

    scales: tuple[float, ...] = (1.0,)

    @property
    def needs_base(self) -> bool:
        return True

    def coefficients(self, count: int) -> tuple[float, ...]:
        return each(self.scales, count, "scales")
