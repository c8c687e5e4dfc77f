"""Focal: rows that are already right count less."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ...data.schedules import Schedule, at, ends
from .rowwise import Rowwise
from .seen import Seen, softplus


@dataclass(frozen=True)
class Focal(Rowwise):
    """InfoNCE times (1 - p)^gamma, p the probability of the positive (KaLM-Embedding-V2, arXiv:2506.20923): the loss of
    a row is -(1 - p)^gamma log p. gamma=0 is InfoNCE.

    detached: the factor is a constant to the gradient, which is then (1 - p)^gamma times InfoNCE's. The paper does not
    say; off, the factor is (1 - p)^gamma - gamma p (1 - p)^(gamma - 1) log p. 1 - p is the sigmoid of the gap and its
    power is taken in logarithms: a row that is right to the last digit gives 0 for any gamma above 0, not NaN.
    """

    gamma: float | Schedule = 0.5
    detached: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= g < float("inf") for g in ends(self.gamma)):
            raise ValueError(f"Focal: gamma={self.gamma}; expected 0 (InfoNCE) or more, 0.5 is a good start")

    def losses(self, seen: Seen) -> Tensor:
        gap = seen.gap()
        factor = (at(self.gamma, seen.clock.progress) * F.logsigmoid(gap)).exp()
        return (factor.detach() if self.detached else factor) * softplus(gap)
