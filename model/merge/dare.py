"""DARE (arXiv:2311.03099): most of each task vector is dropped at random, and the rest made larger for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.counter import bits, noise
from ...data.types import DataError
from .ties import elected
from .types import Block, Rule, deltas, each


@dataclass(frozen=True)
class Dare(Rule):
    """θ = θ0 + Σ λ_i · mask_i V_i / (1 - drop), whose expectation is task arithmetic.

    drop: the share of each V_i that is dropped. scales: λ, one a model or one for all. ties: the signs are elected and
    the mean taken of what agrees, as in TIES, with the scales as weights, in place of the sum. An element's fate is a
    function of (seed, model, tensor, element), the same for any block.
    """

    drop: float = 0.5
    scales: tuple[float, ...] = (1.0,)
    ties: bool = False
    seed: int = 0

    @property
    def needs_base(self) -> bool:
        return True

    def check(self, count: int) -> None:
        if not 0 <= self.drop < 1:
            raise DataError(f"dare drop={self.drop}: expected a share from 0 to less than 1")
        scales = each(self.scales, count, "scales")
        if self.ties and any(s < 0 for s in scales):
            raise DataError(f"dare scales={self.scales}: with ties they are weights, expected numbers of 0 or more")

    def merge(self, block: Block, found: Any) -> Tensor:
        scales = each(self.scales, len(block.models), "scales")
        left = [self.dropped(v, i, block) for i, v in enumerate(deltas(block))]
        if self.ties:
            merged = elected(left, scales)
        else:
            merged = torch.zeros_like(left[0], dtype=torch.float64)
            for scale, v in zip(scales, left, strict=True):
                merged += v.double() * scale
        return (block.origin.double() + merged).to(block.origin.dtype)

    def dropped(self, vector: Tensor, model: int, block: Block) -> Tensor:
        """What is left of model `model`'s task vector (n,), made larger."""
        if not self.drop:
            return vector
        drawn = noise(block.start, len(vector), bits(self.seed, "dare", model, block.name))
        keep = torch.from_numpy(drawn >= np.uint64(int(self.drop * 2.0**64)))
        return torch.where(keep, vector / (1.0 - self.drop), 0.0)
