"""Delta-guided fusion: in every tensor, the models that moved it further weigh more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...data.types import DataError
from .types import Block, Look, Products, Rule, combine, deltas


@dataclass(frozen=True)
class DeltaGuided(Rule):
    """θ = Σ w_i θ_i with w_i ∝ ‖θ_i - θ0‖^power in each tensor (Frobenius norm); a tensor that none moved is θ0's.

    CoDiEmb (arXiv:2508.11442) weighs models by how far a tensor is from the base. Its formula is in no text or code
    that could be read: this one is ours, unverified. power 0 is the mean.
    """

    power: float = 1.0

    @property
    def needs_base(self) -> bool:
        return True

    def check(self, count: int) -> None:
        if not (self.power >= 0 and math.isfinite(self.power)):
            raise DataError(f"delta_guided power={self.power}: expected 0 or more")

    def look(self, count: int, based: bool) -> Look:
        return Norms()

    def merge(self, block: Block, found: Any) -> Tensor:
        return combine(block, self.weights([found(i, i) for i in range(len(block.models))]))

    def weights(self, squares: list[float]) -> tuple[float, ...]:
        """Of the squared norms of the differences."""
        largest = max(squares)
        if not largest > 0:
            return (1.0 / len(squares),) * len(squares)
        moved = [(s / largest) ** (self.power / 2) for s in squares]
        return tuple(m / math.fsum(moved) for m in moved)


class Norms(Products):
    """The squared norms of the task vectors alone: of pairs there may be many."""

    def __init__(self) -> None:
        super().__init__(deltas)

    def see(self, block: Block) -> None:
        for i, v in enumerate(deltas(block)):
            self.add(i, i, v, v)
