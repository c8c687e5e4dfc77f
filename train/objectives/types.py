"""The kinds of objective. A loss is a sum over rows and a count, so that means are global and exact.

All are frozen values: what is learned (the scale) lives in the Embedder, what changes over time hangs on the Clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from ...data.relation import Relation
from ...data.types import Clock
from ..gather import Group


@dataclass(frozen=True)
class SumCount:
    sum: Tensor  # ()
    count: int


@runtime_checkable
class Contrastive(Protocol):
    """query (Q, D), docs (N, D), both L2-normalised float32 (or float64); scale (1,): logits are scale * cosine.

    Differentiable in query, docs and scale. Rows of the Relation are the rows of query and docs.
    """

    @property
    def weight(self) -> float: ...

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount: ...


@dataclass(frozen=True)
class Graded:
    """What one rank computes of a loss that all ranks share. Sum, count and d_scale are those of the whole batch, equal
    on every rank; a rank's gradients of that sum are of its even shares, group.share(Q) and group.share(N)."""

    sum: Tensor  # ()
    count: int
    d_query: Tensor  # (b - a, D) by the queries group.share(Q)
    d_docs: Tensor  # (b - a, D) by the documents group.share(N)
    d_scale: Tensor  # (1,)


@runtime_checkable
class Sharded(Protocol):
    """A Contrastive whose rows the ranks divide among them. The operands are those of `contrast`, of the whole batch,
    equal on every rank and detached; all ranks call it together."""

    def sharded(
        self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded: ...


@runtime_checkable
class Pairwise(Protocol):
    """similarity (B,) cosines and score (B,) graded labels, the same on every rank -> the loss, ()."""

    @property
    def weight(self) -> float: ...

    def pairwise(self, similarity: Tensor, score: Tensor, clock: Clock) -> Tensor: ...


@runtime_checkable
class Local(Protocol):
    """logits (m, V) at the labelled positions and labels (m,): local to a row, inside the engine's forward."""

    @property
    def weight(self) -> float: ...

    def local(self, logits: Tensor, labels: Tensor) -> SumCount: ...


Objective = Contrastive | Pairwise | Local
