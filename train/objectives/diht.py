"""DiHT: negatives weighed by a softmax over their cosines, the positive in the denominator by a constant."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, log

import torch
from torch import Tensor

from ...data.schedules import Schedule, at, ends
from .rowwise import Rowwise
from .seen import Seen, log_sum


@dataclass(frozen=True)
class DiHT(Rowwise):
    """-log [e^(s+/tau) / (a e^(s+/tau) + sum_j w_j e^(s_j/tau))] with w = n softmax(beta s) over the n negatives of the
    row, so that their weights add up to n (hard-negative noise-contrastive estimation, arXiv:2301.02280, with the
    defaults of U-MARVEL, arXiv:2507.14902). beta is by the cosine, not by the logit. U-MARVEL's code divides by the sum
    over all but j, the positive included; ours is over the negatives, j included. a=1, beta=0 is InfoNCE. Below a=1 a
    row can cost less than 0, down to log a.

    detached: the weights are constants to the gradient. Off, as in the released code, the gradient flows through them.
    """

    a: float = 0.95
    beta: float | Schedule = 0.1
    detached: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.a < inf:
            raise ValueError(f"DiHT: a={self.a}; expected a number above 0, 1 leaves the positive as it is")
        if not all(isfinite(b) for b in ends(self.beta)):
            raise ValueError(f"DiHT: beta={self.beta}; expected a finite number, 0 weighs all negatives alike")

    def losses(self, seen: Seen) -> Tensor:
        tilt = at(self.beta, seen.clock.progress) * (seen.cosine.detach() if self.detached else seen.cosine)
        count = seen.negative.sum(1).clamp(min=1).to(tilt.dtype)
        weight = tilt + (count.log() - log_sum(tilt, seen.negative).clamp(min=-1e30))[:, None]
        gap = seen.gap(seen.logits + weight)
        return torch.logaddexp(gap, torch.full_like(gap, log(self.a)))
