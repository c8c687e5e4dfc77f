"""Pearson: one minus the correlation of cosines and labels over the batch's pairs.

The value does not change with the scale or the offset of either, so its gradient moves neither the mean of the cosines
nor their spread: beside it something else must set those.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...data.schedules import Schedule
from ...data.types import Clock


@dataclass(frozen=True)
class Pearson:
    """1 - rho (CoDiEmb, arXiv:2508.11442): 0 where the cosines rise with the labels along a line, 2 where they fall."""

    weight: float | Schedule = 1.0

    def pairwise(self, similarity: Tensor, score: Tensor, clock: Clock) -> Tensor:
        """similarity (B,), score (B,) -> (). A correlation with a constant is undefined: where all labels, or all
        similarities, are equal, or there are fewer than two pairs, it is 0 with zero gradients. In float64 inside."""
        if not len(similarity):
            return similarity.sum()
        x, y = similarity.double(), score.detach().double()
        constant = (x.amax() == x.amin()) | (y.amax() == y.amin())  # exact: what is left of a mean may be rounding
        x, y = x - x.mean(), y - y.mean()
        spread = (x.square().sum() * y.square().sum()).masked_fill(constant, 1.0).sqrt()
        return (1 - (x * y).sum() / spread).masked_fill(constant, 0.0).to(similarity.dtype)
