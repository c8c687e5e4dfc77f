"""The loss of a whole batch, and its gradient where it is needed: each rank gets that of its own entries' vectors.

Every rank holds all vectors, detached. An objective that shards itself computes each rank's rows and sends the
gradients home; any other is computed by every rank alike, and each takes its own entries' part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.relation import Relation, of_queries
from ..data.types import Clock
from .gather import Group, bring
from .objectives.types import Contrastive, Local, Objective, Pairwise, Sharded


@dataclass(frozen=True)
class Bound:
    """Objectives bound to the sources (by index) whose rows they get."""

    name: str
    objectives: tuple[Objective, ...]
    groups: frozenset[int]

    def label(self, objective: Objective) -> str:
        return f"{self.name}/{type(objective).__name__.lower()}"


def local_terms(bounds: Sequence[Bound]) -> dict[str, tuple[frozenset[int], Local]]:
    """Every Local objective by name, with the sources whose answers it takes."""
    return {b.label(o): (b.groups, o) for b in bounds for o in b.objectives if isinstance(o, Local)}


@dataclass
class Graded:
    """d_own (n, D): the gradient by the vectors of this rank's n entries, in the order of its chunks; d_scale (1,): of
    the whole, on every rank; losses: by objective, before weights; loss: their weighted sum, equal on all ranks."""

    d_own: Tensor
    d_scale: Tensor
    loss: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Owners:
    """Whose entries are whose. entries: of each rank, in the order of its chunks."""

    group: Group
    entries: Sequence[Tensor]
    rank_of: Tensor  # (E,)
    place: Tensor  # (E,) among this rank's, -1 for another's

    @staticmethod
    def of(group: Group, entries: Sequence[Tensor], device: torch.device) -> Owners:
        rank_of = torch.empty(sum(map(len, entries)), dtype=torch.int64)
        place = torch.full_like(rank_of, -1)
        for rank, theirs in enumerate(entries):
            rank_of[theirs] = rank
        place[entries[group.rank]] = torch.arange(len(entries[group.rank]))
        return Owners(group, entries, rank_of, place.to(device))


def batch_loss(
    vectors: Tensor,
    scale: Tensor,
    relation: Relation,
    good: Tensor,
    bounds: Sequence[Bound],
    clock: Clock,
    owners: Owners,
) -> Graded:
    """vectors (Q + N, D) and scale (1,), detached, the same on every rank; good (Q,): rows that count."""
    q = len(relation.query_id)
    own = len(owners.entries[owners.group.rank])
    out = Graded(vectors.new_zeros((own, vectors.shape[1])), torch.zeros_like(scale))
    for bound in bounds:
        mine = good & torch.isin(relation.query_source, torch.tensor(sorted(bound.groups), device=good.device))
        part, queries, docs = of_queries(relation, mine)
        if not len(queries) or not len(docs):
            continue
        whole = len(queries) == q  # then no copy is needed
        rows = (queries, q + docs)
        pair = (vectors[:q], vectors[q:]) if whole else (vectors[rows[0]], vectors[rows[1]])
        for objective in bound.objectives:
            if isinstance(objective, Local):
                continue
            grade = _shared if isinstance(objective, Sharded) else _whole
            value = grade(objective, pair, rows, scale, part, clock, owners, out)
            out.losses[bound.label(objective)] = value
            out.loss += objective.weight * value
    return out


Pair = tuple[Tensor, Tensor]


def _whole(
    objective: Contrastive | Pairwise,
    pair: Pair,
    rows: Pair,
    scale: Tensor,
    part: Relation,
    clock: Clock,
    owners: Owners,
    out: Graded,
) -> float:
    """By autograd, over all rows."""
    query, doc = (v.detach().requires_grad_() for v in pair)
    leaf = scale.clone().requires_grad_()
    with torch.enable_grad():
        if isinstance(objective, Contrastive):
            found = objective.contrast(query, doc, part, leaf, clock)
            value = found.sum / max(found.count, 1)
        else:
            first = part.positive & (part.rank == 0)
            cosine = (query[part.owner[first]] * doc[first]).sum(-1)
            value = objective.pairwise(cosine, part.score[first], clock)
    if value.requires_grad:
        *gradients, d_scale = torch.autograd.grad(value, (query, doc, leaf), allow_unused=True)
        for entries, gradient in zip(rows, gradients, strict=True):
            if gradient is not None:
                place = owners.place[entries]
                here = place >= 0
                out.d_own.index_add_(0, place[here], gradient[here].to(out.d_own.dtype), alpha=objective.weight)
        if d_scale is not None:
            out.d_scale += objective.weight * d_scale
    return float(value.detach())


def _shared(
    objective: Any,
    pair: Pair,
    rows: Pair,
    scale: Tensor,
    part: Relation,
    clock: Clock,
    owners: Owners,
    out: Graded,
) -> float:
    """Each rank its share of the rows; the gradients go home."""
    found = objective.sharded(*pair, part, scale, clock, owners.group)
    factor: float = objective.weight / max(found.count, 1)
    for entries, gradient in zip(rows, (found.d_query, found.d_docs), strict=True):
        here, home = bring(owners.group, gradient, entries, owners.rank_of)
        out.d_own.index_add_(0, owners.place[here], home.to(out.d_own.dtype), alpha=factor)
    out.d_scale += factor * found.d_scale
    value: float = float(found.sum) / max(found.count, 1)
    return value
