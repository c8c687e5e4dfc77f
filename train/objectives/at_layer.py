"""An objective on the vectors of an inner layer, beside those of the last (CoDiEmb, arXiv:2508.11442)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...data.relation import Relation
from ...data.schedules import Schedule
from ...data.types import Clock
from .pairs import pairs
from .types import Contrastive, Layer, Pairwise, SumCount


@dataclass(frozen=True)
class AtLayer:
    """`of`, given the vectors that the first `layer` blocks of the language model give: "middle" is half of them, as in
    the middle-layer term of CoDiEmb, AtLayer(Above(InfoNCE(), 1.0)). The inner weight is not used."""

    of: Contrastive | Pairwise
    layer: Layer = "middle"
    weight: float | Schedule = 1.0

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        """query (Q, D), docs (N, D) of the layer, unit length."""
        if isinstance(self.of, Contrastive):
            return self.of.contrast(query, docs, relation, scale, clock)
        return SumCount(self.of.pairwise(*pairs(query, docs, relation), clock), 1)
