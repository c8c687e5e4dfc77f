"""Spherical interpolation of two models: along the arc between them, so that the norm does not shrink half-way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ...data.types import DataError
from .types import Block, Look, Products, Rule, Scope, deltas

_STRAIGHT = 1e-4  # radians from parallel, or from opposite, where an arc has no plane: a straight line is taken


@dataclass(frozen=True)
class Slerp(Rule):
    """sin((1-t) Ω)/sin Ω · a + sin(t Ω)/sin Ω · b, where Ω is the angle of a and b; t = 0 is the first model.

    over: "tensor", each tensor has its own angle, or "model", one for all. With a base, a and b are the task vectors
    θ_i - θ0 and θ0 is added; else the weights themselves. Nearly parallel, opposite or zero vectors are interpolated
    straight. Angles are in float64. Qwen3-Embedding merges its checkpoints so (arXiv:2506.05176), by what angle is not
    said.
    """

    t: float = 0.5
    over: Literal["tensor", "model"] = "tensor"

    def __post_init__(self) -> None:
        if self.over not in ("tensor", "model"):
            raise DataError(f"slerp over={self.over!r}: expected 'tensor' or 'model'")

    @property
    def scope(self) -> Scope:
        return self.over

    def check(self, count: int) -> None:
        if count != 2:
            raise DataError(f"slerp goes from one model to another, and {count} are given; merge two, then the next")
        if not 0 <= self.t <= 1:
            raise DataError(f"slerp t={self.t}: expected 0 (the first model) to 1 (the second)")

    def look(self, count: int, based: bool) -> Look:
        return Products(deltas if based else lambda block: block.models)

    def merge(self, block: Block, found: Any) -> Tensor:
        first, second = factors(self.t, found(0, 0), found(1, 1), found(0, 1))
        ends: Sequence[Tensor] = block.models
        total = ends[0].double() * first + ends[1].double() * second
        if block.base is not None:  # of the task vectors: θ0 + f (a - θ0) + s (b - θ0)
            total += block.base.double() * (1.0 - first - second)
        return total.to(ends[0].dtype)


def factors(t: float, aa: float, bb: float, ab: float) -> tuple[float, float]:
    """What a and b are multiplied by, of their squared norms and their dot product."""
    if not (aa > 0 and bb > 0):
        return 1.0 - t, t
    angle = math.acos(max(-1.0, min(1.0, ab / math.sqrt(aa * bb))))
    if angle < _STRAIGHT or math.pi - angle < _STRAIGHT:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
