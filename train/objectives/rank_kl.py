"""RankKL: the softmax of the cosines should be that of the labels' ranks, which only asks for an order.

The divergence is a plain sum over the pairs. "batchmean" on a vector would divide it by the number of pairs, as a
published implementation does, and so make its weight depend on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.schedules import Schedule
from ...data.types import Clock


@dataclass(frozen=True)
class RankKL:
    """KL(softmax(t / temperature) || softmax(cosine / temperature)) over the batch's pairs (CoDiEmb, arXiv:2508.11442).

    t is the rank of the label, 1 for the highest and 0 for the lowest, evenly spaced; equal labels share the mean of
    their ranks. It is 0 where the cosines are the t, up to a constant; its gradient is (softmax - target) over the
    temperature.
    """

    weight: float | Schedule = 1.0
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"RankKL: temperature={self.temperature}; expected a number above 0 (0.05 is usual)")

    def pairwise(self, similarity: Tensor, score: Tensor, clock: Clock) -> Tensor:
        """similarity (B,), score (B,) -> (). Equal labels rank nothing: where all are equal, or there are fewer than
        two pairs, it is 0 with zero gradients. In float64 inside."""
        if len(similarity) < 2:
            return similarity[:0].sum()
        constant = score.amax() == score.amin()
        target = (ranks(score.detach().double()) / (len(score) - 1) / self.temperature).log_softmax(0)
        found = (similarity.double() / self.temperature).log_softmax(0)
        return (target.exp() * (target - found)).sum().masked_fill(constant, 0.0).to(similarity.dtype)


def ranks(label: Tensor) -> Tensor:
    """(B,) in the floating type of `label`: 0 for the lowest, B - 1 for the highest, equal labels their mean rank."""
    ascending = label.sort().values
    first, behind = (torch.searchsorted(ascending, label, right=right) for right in (False, True))
    return (first + behind - 1).to(label.dtype) / 2
