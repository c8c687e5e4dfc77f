"""The kinds of objective. A loss is a sum over rows and a count, so that means are global and exact.

All are frozen values: what is learned (the scale) lives in the Embedder, what changes over time hangs on the Clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...data.relation import Relation
from ...data.schedules import Schedule
from ...data.types import Clock, Where
from ..gather import Group

Layer = int | Literal["middle"]


@dataclass(frozen=True)
class SumCount:
    sum: Tensor  # ()
    count: int


class NoScoreError(ValueError):
    """A row lacks what its objective goes by. `query` is its index in the Relation that the objective was given; the
    step names the row's key."""

    def __init__(self, query: int, lacks: str) -> None:
        super().__init__(f"row {query}: {lacks}")
        self.query, self.lacks = query, lacks


def scores_of(relation: Relation, name: str, docs: Tensor) -> Tensor:
    """The scores `name` of the documents `docs` (n,) of the Relation, (n,) float32. Raises NoScoreError for the first
    row that lacks one, or has one that is infinite."""
    given = relation.scores.get(name)
    found = torch.full(docs.shape, torch.nan, device=docs.device) if given is None else given[docs]
    bad = ~found.isfinite()
    if bad.any():
        row = int(relation.owner[docs[bad][0]])
        if not found[bad][0].isnan():
            raise NoScoreError(row, f"an infinite score {name!r}; expected finite ones, such as logits")
        raise NoScoreError(
            row,
            f"no score {name!r} for each of its answers, which the objective goes by; give the row scores"
            f"[{name!r}], one per positive and then per negative (a judge or a miner fills them), or another objective",
        )
    return found


@runtime_checkable
class Contrastive(Protocol):
    """query (Q, D), docs (N, D), both L2-normalised float32 (or float64); scale (1,): logits are scale * cosine.

    Differentiable in query, docs and scale. Rows of the Relation are the rows of query and docs.
    """

    @property
    def weight(self) -> float | Schedule: ...

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
    def weight(self) -> float | Schedule: ...

    def pairwise(self, similarity: Tensor, score: Tensor, clock: Clock) -> Tensor: ...


@runtime_checkable
class Local(Protocol):
    """logits (m, V) at the labelled positions and labels (m,): local to a row, inside the engine's forward."""

    @property
    def weight(self) -> float | Schedule: ...

    def local(self, logits: Tensor, labels: Tensor) -> SumCount: ...


@runtime_checkable
class States(Protocol):
    """states (n, K, width): the last hidden states of each Item's K embedding tokens (Settings.tokens), of one chunk.
    Local to a row, as Local is, and like it inside the engine's forward. The count of a batch is that of its Items."""

    @property
    def weight(self) -> float | Schedule: ...

    def states(self, states: Tensor) -> SumCount: ...


@runtime_checkable
class Layered(Protocol):
    """A Contrastive or Pairwise that is given the vectors of an inner layer in place of the last. layer: how many of
    the language model's blocks the vectors come from; "middle" is half of them, rounded down. Pooled and normalised as
    the embedder's are, without its final norm and head."""

    @property
    def layer(self) -> Layer: ...


@runtime_checkable
class Stepped(Protocol):
    """A Contrastive whose `scale` is (2,): the inverse temperature, and the embedder's learned step of int8 vectors
    (Settings.int8). `stepped` says whether it takes it."""

    @property
    def stepped(self) -> bool: ...


@runtime_checkable
class Opens(Protocol):
    """An objective that goes by what another step made: `opened` gives the one that is used, once for a stage and on
    every rank."""

    def opened(self, where: Where) -> Objective: ...


Objective = Contrastive | Pairwise | Local | States
