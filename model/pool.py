"""Hidden states of a packed row to one vector per segment: last or first token, mean, weighted mean, latent attention.

Pooling looks at the prompt only, never at the answer behind it, so an answer cannot leak into its own vector.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from .types import Inputs

Pooling = Literal["last", "mean", "weighted", "cls", "latent"]


def _starts(inputs: Inputs) -> list[int]:
    return [0, *accumulate(inputs.lengths)][:-1]


def _owner(inputs: Inputs, device: torch.device) -> Tensor:
    """(T,) the segment of each token."""
    lengths = torch.tensor(inputs.lengths)
    return torch.arange(len(inputs.lengths)).repeat_interleave(lengths).to(device, non_blocking=True)


def last_token(hidden: Tensor, inputs: Inputs) -> Tensor:
    """hidden (T, d) -> (n, d): the state of each prompt's last token."""
    at = [start + prefix - 1 for start, prefix in zip(_starts(inputs), inputs.prefix, strict=True)]
    return hidden[torch.tensor(at).to(hidden.device, non_blocking=True)]


def first_token(hidden: Tensor, inputs: Inputs) -> Tensor:
    """hidden (T, d) -> (n, d): the state of each segment's first token, as BERT-type encoders have it."""
    return hidden[torch.tensor(_starts(inputs)).to(hidden.device, non_blocking=True)]


def _weighted(hidden: Tensor, weight: Tensor, inputs: Inputs) -> Tensor:
    owner = _owner(inputs, hidden.device)
    n = len(inputs.lengths)
    total = hidden.new_zeros(n).index_add(0, owner, weight)
    summed = hidden.new_zeros(n, hidden.shape[1]).index_add(0, owner, hidden * weight[:, None])
    return summed / total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]


def mean(hidden: Tensor, inputs: Inputs) -> Tensor:
    """Mean over the pooled tokens (instruction tokens out where they are masked: U-MARVEL, arXiv:2507.14902)."""
    hidden = hidden.float() if hidden.dtype in (torch.float16, torch.bfloat16) else hidden
    return _weighted(hidden, inputs.pooled.to(hidden.dtype), inputs)


def weighted_mean(hidden: Tensor, inputs: Inputs) -> Tensor:
    """Mean with weights 1, 2, 3, ... along each segment's pooled tokens (SGPT, arXiv:2202.08904)."""
    hidden = hidden.float() if hidden.dtype in (torch.float16, torch.bfloat16) else hidden
    pooled = inputs.pooled.to(torch.int64)
    counts = pooled.cumsum(0)
    before = counts - pooled
    starts = torch.tensor(_starts(inputs)).to(hidden.device)
    ranks = (counts - before[starts][_owner(inputs, hidden.device)]) * pooled
    return _weighted(hidden, ranks.to(hidden.dtype), inputs)


class LatentAttention(nn.Module):
    """Tokens attend to learned latents, pass an MLP, and are averaged (NV-Embed, arXiv:2405.17428, section 3.1)."""

    def __init__(self, width: int, latents: int = 512, heads: int = 8) -> None:
        super().__init__()
        heads = next(h for h in range(heads, 0, -1) if width % h == 0)
        self.latents = nn.Parameter(torch.randn(latents, width) / width**0.5)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        query = hidden.to(self.latents.dtype)[None]
        seen, _ = self.attend(query, self.latents[None], self.latents[None], need_weights=False)
        return mean(self.mlp(seen[0]), inputs)
