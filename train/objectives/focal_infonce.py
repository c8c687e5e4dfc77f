"""Focal-InfoNCE: cosines squared, with a margin for the negatives."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from ...data.schedules import Schedule, at, ends
from .rowwise import Rowwise
from .seen import Seen, softplus


@dataclass(frozen=True)
class FocalInfoNCE(Rowwise):
    """InfoNCE with the logits scale * s^2 for the positive and scale * s (s + margin) for a negative (arXiv:2310.06918,
    as U-MARVEL states it, arXiv:2507.14902): what is near is scaled up. No weight is a constant to the gradient. With
    margin=0 and cosines of 0 and 1 it is InfoNCE. A positive of negative cosine is pushed away, as the formula says:
    meant for vectors that are trained already."""

    margin: float | Schedule = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isfinite(m) for m in ends(self.margin)):
            raise ValueError(f"FocalInfoNCE: margin={self.margin}; expected a finite number, 0.2 to 0.3 in the papers")

    def losses(self, seen: Seen) -> Tensor:
        margin = at(self.margin, seen.clock.progress)
        wrong = seen.scale * seen.cosine * (seen.cosine + margin)
        return softplus(seen.gap(wrong, seen.scale * seen.positive.square()))
