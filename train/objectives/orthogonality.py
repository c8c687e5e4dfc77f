"""Orthogonality: the embedding tokens of an Item are to say different things (ReMatch, CVPR 2026)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.schedules import Schedule
from .types import SumCount


@dataclass(frozen=True)
class Orthogonality:
    """2 / (K (K - 1)) times the sum of squared cosines over the pairs of an Item's K embedding tokens, meaned over
    Items: 0 where their last states are orthogonal, 1 where they point one way. Needs Settings.tokens of 2 or more."""

    weight: float | Schedule = 0.5

    def states(self, states: Tensor) -> SumCount:
        """states (n, K, width), in float32 (float64 stays). With n = 0 the sum is a zero that hangs on the graph."""
        if states.ndim != 3 or states.shape[1] < 2:
            raise ValueError(
                f"Orthogonality: states of shape {tuple(states.shape)}; expected (n, K, width) with K of 2 or more "
                "embedding tokens: raise tokens"
            )
        exact = states if states.dtype == torch.float64 else states.float()
        unit = F.normalize(exact, dim=-1)
        count = states.shape[1]
        apart = (unit @ unit.mT).square() * (1 - torch.eye(count, dtype=unit.dtype, device=unit.device))
        return SumCount(apart.sum() / (count * (count - 1)), states.shape[0])
