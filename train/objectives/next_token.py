"""NextToken: the autoregressive loss at labelled positions, as a sum and a count.

The mean of per-chunk means weights a short answer as much as a long one: only the caller, who knows the count of the
whole batch, may divide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import SumCount


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the next token. `weight` is what a stage multiplies the mean with."""

    weight: float = 1.0

    def local(self, logits: Tensor, labels: Tensor) -> SumCount:
        """logits (m, V), labels (m,) int64, every one of them a token. Computed in float32 (float64 stays). With m = 0
        the sum is a zero that hangs on the graph, so that every chunk's backward reaches the head."""
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            shapes = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
            raise ValueError(f"NextToken: {shapes}; expected (m, V) and (m,)")
        exact = logits if logits.dtype == torch.float64 else logits.float()
        return SumCount(F.cross_entropy(exact, labels, reduction="sum"), labels.shape[0])
