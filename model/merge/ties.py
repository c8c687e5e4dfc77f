"""TIES (arXiv:2306.01708): trim each task vector, elect a sign for each weight, merge what agrees with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...data.types import DataError
from .types import Block, Look, Rule, Scope, deltas, each, shares

_BUCKETS = 1 << 16  # of the upper 15 bits of a magnitude, then of the lower 16


@dataclass(frozen=True)
class Ties(Rule):
    """θ = θ0 + scale · disjoint mean of the trimmed V_i.

    density: the share of each V_i that is kept, the largest by magnitude (all of equal ones at the edge); the paper
    keeps 0.2. over: the share is of each "tensor", or of the whole "model" as in the paper. weights: of the models, one
    each or one for all, in the election and in the mean. The edge is found exactly in two streaming passes over radix
    histograms of the float32 magnitudes: 1 MB a model, whatever its size.
    """

    density: float = 0.2
    scale: float = 1.0
    weights: tuple[float, ...] = (1.0,)
    over: Literal["tensor", "model"] = "tensor"

    def __post_init__(self) -> None:
        if self.over not in ("tensor", "model"):
            raise DataError(f"ties over={self.over!r}: expected 'tensor' or 'model'")

    @property
    def needs_base(self) -> bool:
        return True

    @property
    def scope(self) -> Scope:
        return self.over

    def check(self, count: int) -> None:
        if not 0 < self.density <= 1:
            raise DataError(f"ties density={self.density}: expected a share above 0, 1 at most")
        shares(self.weights, count, "ties weights")
        each((self.scale,), count, "ties scale")

    def look(self, count: int, based: bool) -> Look:
        return Edges(self.density, count)

    def merge(self, block: Block, found: Any) -> Tensor:
        kept = [trim(v, edge) for v, edge in zip(deltas(block), found.edges, strict=True)]
        merged = elected(kept, each(self.weights, len(kept), "weights"))
        return (block.origin.double() + merged * self.scale).to(block.origin.dtype)


def trim(vector: Tensor, edge: float) -> Tensor:
    """The elements of at least `edge` in magnitude, zeros elsewhere."""
    return torch.where(vector.float().abs() >= edge, vector, 0.0)


def elected(vectors: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """The weighted mean of those that have the sign of the weighted sum, zero where none is left; float64."""
    total = torch.zeros_like(vectors[0], dtype=torch.float64)
    for w, v in zip(weights, vectors, strict=True):
        total += v.double() * w
    sign = total.sign()
    total.zero_()
    weight = torch.zeros_like(total)
    for w, v in zip(weights, vectors, strict=True):
        agrees = (v.sign() == sign) & (v != 0)
        total += torch.where(agrees, v, 0.0).double() * w
        weight += agrees * w
    return torch.where(weight > 0, total / weight.clamp(min=1e-300), 0.0)


class Edges:
    """A Look: the magnitude at which the share `density` of each task vector begins, by radix selection."""

    def __init__(self, density: float, count: int) -> None:
        self.density = density
        self.edges: list[float] = []
        self._upper = [torch.zeros(_BUCKETS, dtype=torch.int64) for _ in range(count)]
        self._lower = [torch.zeros(_BUCKETS, dtype=torch.int64) for _ in range(count)]
        self._bucket: list[int] = []
        self._left: list[int] = []  # how many of the bucket, from its top, are kept

    def see(self, block: Block) -> None:
        for i, v in enumerate(deltas(block)):
            bits = v.float().abs().view(torch.int32)  # of numbers that are not negative: in their order
            if not self._bucket:
                self._upper[i] += torch.bincount(bits >> 16, minlength=_BUCKETS)
            else:
                inside = bits[(bits >> 16) == self._bucket[i]] & 0xFFFF
                self._lower[i] += torch.bincount(inside, minlength=_BUCKETS)

    def again(self) -> bool:
        if not self._bucket:
            found = [_place(h, max(1, math.ceil(self.density * int(h.sum()) - 1e-9))) for h in self._upper]
            self._bucket, self._left = [b for b, _ in found], [left for _, left in found]
            return True
        lower = [_place(h, left)[0] for h, left in zip(self._lower, self._left, strict=True)]
        bits = torch.tensor([b << 16 | x for b, x in zip(self._bucket, lower, strict=True)], dtype=torch.int32)
        self.edges = bits.view(torch.float32).tolist()
        return False


def _place(histogram: Tensor, rank: int) -> tuple[int, int]:
    """The bucket of the rank-th largest, and its rank inside it."""
    above = histogram.flip(0).cumsum(0)
    at = int(torch.searchsorted(above, rank))
    bucket = len(histogram) - 1 - at
    return bucket, rank - int(above[at] - histogram[bucket])
