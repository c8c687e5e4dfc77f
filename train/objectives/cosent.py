"""CoSENT: of two pairs, the one with the higher label should have the higher cosine. O(B log B) for B pairs.

All B**2 comparisons are in the sum. Sorted by label, what lies below a pair is a running log-sum-exp; a gap of labels
is the sum of the steps between neighbours, so that sums weighted by it are running sums too, without a subtraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...data.schedules import Schedule
from ...data.types import Clock

Gap = Literal["none", "linear"]


@dataclass(frozen=True)
class CoSENT:
    """log(1 + sum over y_i > y_j of g(y_i - y_j) exp((c_j - c_i) / temperature)), of the cosines c and labels y.

    The formula is that of CoSENT, used for graded pairs by QZhou (arXiv:2508.21632); it has no paper of its own. Pairs
    of equal label say nothing of each other. With one label above all others, and these equal, it is InfoNCE.

    gap: "none" is g = 1; "linear" is g(x) = x, by which a comparison counts as far as its labels are apart. Others
        weigh by the gap without saying how; "linear" is ours.
    temperature: its own, not the embedder's: 0.05 is the usual factor of 20.
    """

    weight: float | Schedule = 1.0
    temperature: float = 0.05
    gap: Gap = "none"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"CoSENT: temperature={self.temperature}; expected a number above 0 (0.05 is usual)")
        if self.gap not in get_args(Gap):
            raise ValueError(f"CoSENT: gap={self.gap!r}; expected one of {', '.join(get_args(Gap))}")

    def pairwise(self, similarity: Tensor, score: Tensor, clock: Clock) -> Tensor:
        """similarity (B,), score (B,) -> (). Zero, with zero gradients, where all labels are equal. In float64 inside:
        B numbers cost nothing."""
        if not len(similarity):
            return similarity.sum()
        label, order = score.detach().double().sort(stable=True)
        cosine = similarity.double()[order] / self.temperature
        value, gradient = _graded(cosine.detach(), label, self.gap)
        # The gradient is known in closed form; autograd would make NaN of the empty sums, whose logarithm is -inf.
        return (value + (gradient * (cosine - cosine.detach())).sum()).to(similarity.dtype)


def _graded(c: Tensor, y: Tensor, gap: Gap) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by c (B,), cosines over the temperature, in the order of ascending labels y."""
    below = _below(c, y, gap)
    above = _below(-c.flip(0), -y.flip(0), gap).flip(0)
    total = torch.logsumexp(torch.cat([c.new_zeros(1), below - c]), 0)
    return total, (above + c - total).exp() - (below - c - total).exp()


def _below(c: Tensor, y: Tensor, gap: Gap) -> Tensor:
    """(B,): log of the sum over y_j < y_i of g(y_i - y_j) exp(c_j), for each i; -inf where there is none. y ascends."""
    running = torch.logcumsumexp(c, 0)
    none = c.new_full((1,), -torch.inf)
    if gap == "none":
        return torch.cat([none, running])[torch.searchsorted(y, y)]
    return torch.cat([none, torch.logcumsumexp(y.diff().log() + running[:-1], 0)])
