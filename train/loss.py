"""The loss of a whole batch, and its gradient where it is needed: each rank gets that of its own entries' vectors.

Every rank holds all vectors, detached. An objective that shards itself computes each rank's rows and sends the
gradients home; any other is computed by every rank alike, and each takes its own entries' part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..data.relation import Relation, of_queries
from ..data.schedules import at
from ..data.types import Clock, Where
from .gather import Group, bring
from .objectives.pairs import pairs
from .objectives.types import (
    Contrastive,
    Layer,
    Layered,
    Local,
    NoScoreError,
    Objective,
    Opens,
    Pairwise,
    Sharded,
    States,
    Stepped,
)


@dataclass(frozen=True)
class Bound:
    """Objectives bound to the sources (by index) whose rows they get."""

    name: str
    objectives: tuple[Objective, ...]
    groups: frozenset[int]
    given: tuple[Objective, ...] = ()  # as the recipe has them, where opening made others of them

    def labelled(self) -> Iterator[tuple[str, Objective]]:
        """Every objective under a name of its own, by its kind in the recipe: of two of one kind, the second ends with
        "-2"."""
        seen: Counter[str] = Counter()
        for told, objective in zip(self.given or self.objectives, self.objectives, strict=True):
            name = f"{self.name}/{'.'.join(type(o).__name__.lower() for o in nested(told))}"
            seen[name] += 1
            yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), objective


def nested(objective: Objective) -> Iterator[Objective]:
    """The objective, and those that it wraps, from outside in."""
    inner: Any = objective
    while inner is not None:
        yield inner
        inner = getattr(inner, "of", None)


def opened(objective: Any, where: Where) -> Objective:
    """The objective with what other steps made for it, wherever it stands among those that are wrapped."""
    found: Objective = objective
    if isinstance(objective, Opens):
        found = objective.opened(where)
    elif (inner := getattr(objective, "of", None)) is not None:
        found = replace(objective, of=opened(inner, where))
    return found


def local_terms(bounds: Sequence[Bound]) -> dict[str, tuple[frozenset[int], Local | States]]:
    """Every objective that a row has alone by name, with the sources that it is for."""
    return {n: (b.groups, o) for b in bounds for n, o in b.labelled() if isinstance(o, Local | States)}


def layers_of(bounds: Sequence[Bound]) -> tuple[Layer, ...]:
    """The inner layers whose vectors are asked for, each once."""
    return tuple(dict.fromkeys(o.layer for b in bounds for o in b.objectives if isinstance(o, Layered)))


@dataclass
class Graded:
    """d_own (n, D): the gradient by the vectors of this rank's n entries, in the order of its chunks; d_at: by those of
    each inner layer; d_scale, of the whole, as the scale, on every rank; losses: by objective, before weights; loss:
    their weighted sum, equal on all ranks."""

    d_own: Tensor
    d_at: dict[Layer, Tensor]
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
    at_layers: Mapping[Layer, Tensor],
    scale: Tensor,
    relation: Relation,
    good: Tensor,
    bounds: Sequence[Bound],
    clock: Clock,
    owners: Owners,
) -> Graded:
    """vectors (Q + N, D), those of inner layers, and the scale (1,) or (2,), detached, the same on every rank; good
    (Q,): rows that count. Raises NoScoreError with the row's index in the batch."""
    q = len(relation.query_id)
    own = len(owners.entries[owners.group.rank])
    zeros = {layer: v.new_zeros((own, v.shape[1])) for layer, v in at_layers.items()}
    out = Graded(vectors.new_zeros((own, vectors.shape[1])), zeros, torch.zeros_like(scale))
    for bound in bounds:
        mine = good & torch.isin(relation.query_source, torch.tensor(sorted(bound.groups), device=good.device))
        part, queries, docs = of_queries(relation, mine)
        if not len(queries) or not len(docs):
            continue
        whole = len(queries) == q  # then no copy is needed
        rows = (queries, q + docs)
        for label, objective in bound.labelled():
            if isinstance(objective, Local | States):
                continue
            layer = objective.layer if isinstance(objective, Layered) else None
            given, into = (vectors, out.d_own) if layer is None else (at_layers[layer], out.d_at[layer])
            pair = (given[:q], given[q:]) if whole else (given[rows[0]], given[rows[1]])
            work = _Work(pair, rows, _scale_of(objective, scale), part, clock, owners, into, out.d_scale)
            try:
                value = work.shared(objective) if isinstance(objective, Sharded) else work.whole(objective)
            except NoScoreError as error:
                raise NoScoreError(int(queries[error.query]), error.lacks) from error
            out.losses[label] = value
            out.loss += work.weight(objective) * value
    return out


def _scale_of(objective: Objective, scale: Tensor) -> Tensor:
    """What an objective is given of the scale: the inverse temperature, and the step of int8 where it takes one."""
    if not (isinstance(objective, Stepped) and objective.stepped):
        return scale[:1]
    if len(scale) != 2:
        raise ValueError(
            f"{type(objective).__name__} learns the step of int8 vectors, and this embedder has none; train it in a "
            "Stage, which gives it one, or load it with Settings(int8=True)"
        )
    return scale


Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Work:
    """One objective's rows of the batch, and where its gradients go."""

    pair: Pair
    rows: Pair  # entries of the batch
    scale: Tensor
    part: Relation
    clock: Clock
    owners: Owners
    d_own: Tensor
    d_scale: Tensor

    def weight(self, objective: Contrastive | Pairwise) -> float:
        return at(objective.weight, self.clock.progress)

    def whole(self, objective: Contrastive | Pairwise) -> float:
        """By autograd, over all rows."""
        query, doc = (v.detach().requires_grad_() for v in self.pair)
        leaf, weight = self.scale.clone().requires_grad_(), self.weight(objective)
        with torch.enable_grad():
            if isinstance(objective, Contrastive):
                found = objective.contrast(query, doc, self.part, leaf, self.clock)
                value = found.sum / max(found.count, 1)
            else:
                value = objective.pairwise(*pairs(query, doc, self.part), self.clock)
        if value.requires_grad:
            *gradients, d_scale = torch.autograd.grad(value, (query, doc, leaf), allow_unused=True)
            for entries, gradient in zip(self.rows, gradients, strict=True):
                if gradient is not None:
                    place = self.owners.place[entries]
                    here = place >= 0
                    self.d_own.index_add_(0, place[here], gradient[here].to(self.d_own.dtype), alpha=weight)
            if d_scale is not None:
                self.d_scale[: len(leaf)] += weight * d_scale
        return float(value.detach())

    def shared(self, objective: Any) -> float:
        """Each rank its share of the rows; the gradients go home."""
        owners = self.owners
        found = objective.sharded(*self.pair, self.part, self.scale, self.clock, owners.group)
        factor = self.weight(objective) / max(found.count, 1)
        for entries, gradient in zip(self.rows, (found.d_query, found.d_docs), strict=True):
            here, home = bring(owners.group, gradient, entries, owners.rank_of)
            self.d_own.index_add_(0, owners.place[here], home.to(self.d_own.dtype), alpha=factor)
        self.d_scale[: len(self.scale)] += factor * found.d_scale
        value: float = float(found.sum) / max(found.count, 1)
        return value
