"""Hardness: the nearer a negative, the more it weighs."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from ...data.schedules import Schedule, at, ends
from .rowwise import Rowwise
from .seen import Seen, softplus


@dataclass(frozen=True)
class Hardness(Rowwise):
    """InfoNCE whose negatives weigh exp(alpha * cosine) (LLaVE, arXiv:2503.04812). The weight is a constant to the
    gradient: the value is that of negatives at the scale 1/tau + alpha, while the gradient at a negative's cosine is
    exp(s/tau + alpha s) / (tau Z), smaller by the factor 1 + alpha tau. alpha=0 is InfoNCE."""

    alpha: float | Schedule = 9.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isfinite(a) for a in ends(self.alpha)):
            raise ValueError(f"Hardness: alpha={self.alpha}; expected a finite number, 0 is InfoNCE")

    def losses(self, seen: Seen) -> Tensor:
        return softplus(seen.gap(seen.logits + at(self.alpha, seen.clock.progress) * seen.cosine.detach()))
