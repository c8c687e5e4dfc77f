"""SoftCSE: a weight or a temperature for each negative, by its cosine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .rowwise import Rowwise
from .seen import Seen, softplus

By = Literal["weight", "temperature"]


@dataclass(frozen=True)
class SoftCSE(Rowwise):
    """InfoNCE in which what is like the query is pushed less (SoftCSE, CIKM 2024, doi:10.1145/3627673.3679745, as
    U-MARVEL's code states it, arXiv:2507.14902). With u_j = (1 - s_j) n / (n - 1) over the n negatives of the row,
    by="weight" multiplies a negative's term by u_j, by="temperature" its logit. Where all cosines are 1/n, u is 1 and
    both are InfoNCE. One negative alone has u = 1 - s, since n - 1 is 0.

    detached: u is a constant to the gradient. Off, as in the released code, the gradient flows through it, and the
    weight of a negative can be lowered by drawing near to it: where all vectors are equal every u is 0 and so is the
    loss by="weight". Random towers fall into that (docs/results/ablations.md), so it is on by default, which is ours.
    """

    by: By = "weight"
    detached: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in get_args(By):
            raise ValueError(f"SoftCSE: by={self.by!r}; expected one of {', '.join(get_args(By))}")

    def losses(self, seen: Seen) -> Tensor:
        count = seen.negative.sum(1, keepdim=True).to(seen.cosine.dtype)
        spread = torch.where(count > 1, count / (count - 1).clamp(min=1), torch.ones_like(count))
        unlike = (1 - (seen.cosine.detach() if self.detached else seen.cosine)) * spread
        if self.by == "temperature":
            return softplus(seen.gap(seen.logits * unlike))
        least = torch.finfo(unlike.dtype).tiny  # a cosine of 1, or beyond it by round-off, weighs nothing
        return softplus(seen.gap(seen.logits + unlike.clamp(min=least).log()))
