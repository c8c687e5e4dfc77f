"""The loss of a whole batch, and its gradient where it is needed: each rank gets that of its own entries' vectors.

Every rank holds all vectors, detached. An objective that shards itself computes each rank's rows and sends the
gradients home; any other is computed by every rank alike, and each takes its own entries' part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    """d_vectors (E, D): only the rows of this rank's entries are meant; d_scale (1,): of the whole, on every rank;
    losses: by objective, before weights; loss: their weighted sum. Losses are equal on all ranks."""

    d_vectors: Tensor
    d_scale: Tensor
    loss: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)


def batch_loss(
    vectors: Tensor,
    scale: Tensor,
    relation: Relation,
    good: Tensor,
    bounds: Sequence[Bound],
    clock: Clock,
    group: Group,
    owner: Tensor,
) -> Graded:
    """vectors (Q + N, D) and scale (1,), detached; good (Q,): rows that count; owner (Q + N,): whose entries."""
    q = len(relation.query_id)
    out = Graded(torch.zeros_like(vectors), torch.zeros_like(scale))
    for bound in bounds:
        mine = good & torch.isin(relation.query_source, torch.tensor(sorted(bound.groups), device=good.device))
        part, queries, docs = of_queries(relation, mine)
        if not len(queries) or not len(docs):
            continue
        for objective in bound.objectives:
            if isinstance(objective, Local):
                continue
            if isinstance(objective, Sharded) and group.size > 1:
                value = _sharded(
                    objective, objective.weight, vectors, scale, part, queries, q + docs, clock, group, owner, out
                )
            else:
                value = _whole(objective, vectors, scale, part, queries, q + docs, clock, out)
            out.losses[bound.label(objective)] = value
            out.loss += objective.weight * value
    return out


def _whole(
    objective: Contrastive | Pairwise,
    vectors: Tensor,
    scale: Tensor,
    part: Relation,
    queries: Tensor,
    docs: Tensor,
    clock: Clock,
    out: Graded,
) -> float:
    """By autograd, over all rows."""
    query, doc = vectors[queries].requires_grad_(), vectors[docs].requires_grad_()
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
        d_query, d_doc, d_scale = torch.autograd.grad(value, (query, doc, leaf), allow_unused=True)
        for rows, gradient in ((queries, d_query), (docs, d_doc)):
            if gradient is not None:
                out.d_vectors.index_add_(0, rows, gradient.to(vectors.dtype), alpha=objective.weight)
        if d_scale is not None:
            out.d_scale += objective.weight * d_scale
    return float(value.detach())


def _sharded(
    objective: Sharded,
    weight: float,
    vectors: Tensor,
    scale: Tensor,
    part: Relation,
    queries: Tensor,
    docs: Tensor,
    clock: Clock,
    group: Group,
    owner: Tensor,
    out: Graded,
) -> float:
    found = objective.sharded(vectors[queries], vectors[docs], part, scale, clock, group)
    factor = weight / max(found.count, 1)
    for rows, gradient in ((queries, found.d_query), (docs, found.d_docs)):
        entries, home = bring(group, gradient, rows, owner)
        out.d_vectors.index_add_(0, entries, home.to(vectors.dtype), alpha=factor)
    out.d_scale += factor * found.d_scale
    return float(found.sum) / max(found.count, 1)
