"""An objective on the vectors of an inner layer, beside those of the last (CoDiEmb, arXiv:2508.11442)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...data.relation import Relation
from ...data.schedules import Schedule
from ...data.types import Clock
from ..gather import Group
from . import wrapped
from .types import Graded, Layer, SumCount
from .wrapped import Inner


@dataclass(frozen=True)
class AtLayer:
    """`of`, given the vectors that the first `layer` blocks of the language model give: "middle" is half of them, as in
    the middle-layer term of CoDiEmb, AtLayer(Above(InfoNCE(), 1.0)). The inner weight is not used. An objective inside
    that rounds to int8 (Quantised) fits its step to each batch: the embedder's is of the last layer.
    """

    of: Inner
    layer: Layer = "middle"
    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        wrapped.checked("AtLayer", self.of)
        if self.layer != "middle" and (not isinstance(self.layer, int) or self.layer < 1):
            raise ValueError(f"AtLayer: layer={self.layer!r}; expected 'middle', or how many blocks, 1 or more")

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        """query (Q, D), docs (N, D) of the layer, unit length; scale (1,)."""
        return wrapped.contrast(self.of, query, docs, relation, scale, clock)

    def sharded(
        self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded:
        return wrapped.divided(self.of, query, docs, relation, scale, clock, group)
