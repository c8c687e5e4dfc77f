"""Mixing: hard negatives made of a query's own, in the space of the vectors.

A mixture of two negatives is nearer to the query than they are, by 1 / cos of half the angle between them: it may be
nearer than the positive, and an objective that masks what is too near (Masked) masks it too.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data import counter
from ...data.relation import Relation
from ...data.schedules import Schedule
from ...data.types import Clock
from ..gather import Group, bring
from . import wrapped
from .negatives import Negatives
from .soft_label import SoftLabel
from .types import Graded, SumCount
from .wrapped import Inner

Kind = Literal["pair", "list", "both"]


@dataclass(frozen=True)
class Mixing:
    """`of`, with mixtures of each query's given negatives among its negatives (KaLM-Embedding-V2, arXiv:2506.20923),
    all of unit length. A query with fewer than two gets none; negatives that are right answers of it after all are not
    mixed. The weight of `of` is not used; whether a mixture is shared by all queries is for `of` to say.

    kind: "pair" is unit(x n_j + (1 - x) n_k) of two drawn negatives, x from Beta(a, a), `count` of them; "list" is
        unit(sum of softmax(cos(query, n) / temperature) n) over all of them, one; or "both".
    a: a whole number. 2 is the paper's; 1 is uniform.
    temperature: of the list's weights; ours.
    detached: mixtures are constants: neither the negatives nor the weights get a gradient from them. Which of the two
        the paper means, it does not say.

    What is drawn depends on the seed, the step, the query's Item and the order of its negatives, on nothing else.
    """

    of: Inner
    kind: Kind = "pair"
    count: int = 1
    a: int = 2
    temperature: float = 0.05
    detached: bool = False
    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        wrapped.checked("Mixing", self.of)
        inner: object = self.of
        while inner is not None:
            if isinstance(inner, SoftLabel):
                raise ValueError("Mixing: SoftLabel goes by scores, and a mixture has none; name it beside, not inside")
            inner = getattr(inner, "of", None)
        if self.kind not in get_args(Kind):
            raise ValueError(f"Mixing: kind={self.kind!r}; expected one of {', '.join(get_args(Kind))}")
        if self.count < 1:
            raise ValueError(f"Mixing: count={self.count}; expected 1 or more mixtures of two for a query")
        if self.a < 1 or self.a != int(self.a):
            raise ValueError(f"Mixing: a={self.a}; expected a whole number above 0 (2 for Beta(2, 2))")
        if not self.temperature > 0:
            raise ValueError(f"Mixing: temperature={self.temperature}; expected a number above 0")

    @property
    def stepped(self) -> bool:
        return wrapped.stepped(self.of)

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        more, whose = self.mixtures(query, docs, relation, clock)
        with_them, order = _among(relation, whose, clock)
        return wrapped.contrast(self.of, query, torch.cat([docs, more])[order], with_them, scale, clock)

    def sharded(
        self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded:
        """Every rank makes all mixtures, which costs no more than reading their parents; `of` is divided."""
        with torch.no_grad():
            more, whose = self.mixtures(query, docs, relation, clock)
        with_them, order = _among(relation, whose, clock)
        out = wrapped.divided(self.of, query, torch.cat([docs, more])[order], with_them, scale, clock, group)
        d_docs, d_more = _apart(group, out.d_docs, order, len(docs), len(more))
        d_query = out.d_query
        if len(more) and not self.detached:
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in (query, docs)]
                again = self.mixtures(leaves[0], leaves[1], relation, clock)[0]
                found = torch.autograd.grad(again, leaves, d_more, allow_unused=True, materialize_grads=True)
            d_query = d_query + found[0][slice(*group.share(len(query)))]
            d_docs = d_docs + found[1][slice(*group.share(len(docs)))]
        return Graded(out.sum, out.count, d_query, d_docs, out.d_scale)

    def mixtures(self, query: Tensor, docs: Tensor, relation: Relation, clock: Clock) -> tuple[Tensor, Tensor]:
        """(M, D) of unit length, and the query of each (M,), in the order of the queries."""
        given = _Given.of(relation)
        if self.detached:
            query, docs = query.detach(), docs.detach()
        found = []
        if self.kind != "list":
            found.append(self._pairs(docs, relation, given, clock))
        if self.kind != "pair":
            found.append(self._lists(query, docs, given))
        mixed, whose = (torch.cat(x) for x in zip(*found, strict=True))
        order = whose.argsort(stable=True)
        return wrapped.unit(mixed)[order], whose[order]

    def _pairs(self, docs: Tensor, relation: Relation, given: _Given, clock: Clock) -> tuple[Tensor, Tensor]:
        ids = relation.query_id.cpu().numpy()[given.query]
        draws = counter.uniform(ids, self.count * (2 * self.a + 1), "mixing", clock.seed, clock.step)
        draws = draws.reshape(len(ids) * self.count, 2 * self.a + 1)  # two for the negatives, the rest for x
        size, start, whose = (x.repeat(self.count) for x in (given.size, given.start, given.query))
        one = (draws[:, 0] * size).astype(np.int64)
        other = (one + 1 + (draws[:, 1] * (size - 1)).astype(np.int64)) % size
        # The a-th smallest of 2 a - 1 uniform numbers is of Beta(a, a).
        share = np.sort(draws[:, 2:], 1)[:, self.a - 1]
        x = torch.from_numpy(share).to(docs)[:, None]
        j, k = (torch.from_numpy(given.docs[start + i]).to(docs.device) for i in (one, other))
        return x * docs[j] + (1 - x) * docs[k], torch.from_numpy(whose).to(docs.device)

    def _lists(self, query: Tensor, docs: Tensor, given: _Given) -> tuple[Tensor, Tensor]:
        group, negative, whose = (
            torch.from_numpy(x).to(docs.device)
            for x in (np.repeat(np.arange(len(given.query)), given.size), given.docs, given.query)
        )
        vectors = docs[negative]
        logits = (query[whose][group] * vectors).sum(1) / self.temperature
        highest = logits.new_full((len(whose),), -torch.inf)
        highest = highest.scatter_reduce(0, group, logits.detach(), "amax")
        weights = (logits - highest[group]).exp()
        total = torch.zeros_like(highest).index_add(0, group, weights)
        weighed = vectors * (weights / total[group])[:, None]
        return vectors.new_zeros((len(whose), docs.shape[1])).index_add(0, group, weighed), whose


@dataclass(frozen=True)
class _Given:
    """The given negatives of the queries that have two or more, query by query in the order of their ranks."""

    query: NDArray[np.int64]  # (R,) ascending
    start: NDArray[np.int64]  # (R,) where its negatives begin in `docs`
    size: NDArray[np.int64]  # (R,) and how many they are
    docs: NDArray[np.int64]

    @staticmethod
    def of(relation: Relation) -> _Given:
        index = Negatives.of(relation, shared=False, in_batch=False, mask_labels=False, across_sources=True)
        strip = index.strips[0]
        docs = strip.order[strip.given][~strip.given_right]
        owner, rank = (x.cpu().numpy()[docs] for x in (relation.owner, relation.rank))
        size = np.bincount(owner, minlength=len(relation.query_id))
        enough = size[owner] > 1
        order = np.lexsort((rank[enough], owner[enough]))
        query = np.flatnonzero(size > 1)
        size = size[query]
        return _Given(query, size.cumsum() - size, size, docs[enough][order])


def _among(relation: Relation, whose: Tensor, clock: Clock) -> tuple[Relation, Tensor]:
    """The Relation of the documents and, behind those of each query, its mixtures; and their order, of both lists."""
    count = len(whose)
    owner = torch.cat([relation.owner, whose])
    order = owner.argsort(stable=True)
    behind = relation.rank.new_zeros(len(relation.query_id) + 1)
    behind[1:].scatter_reduce_(0, relation.owner, relation.rank + 1, "amax")
    earlier = torch.arange(count, device=whose.device) - torch.searchsorted(whose, whose)
    more = {
        "positive": relation.positive.new_zeros(count),
        "rank": behind[whose + 1] + earlier,
        "doc_id": _fresh(relation, count, clock),
    }
    names = {n: torch.cat([getattr(relation, n), x])[order] for n, x in more.items()}
    scores = {n: torch.cat([x, x.new_full((count,), torch.nan)])[order] for n, x in relation.scores.items()}
    return replace(relation, owner=owner[order], scores=scores, **names), order


def _apart(group: Group, share: Tensor, order: Tensor, docs: int, more: int) -> tuple[Tensor, Tensor]:
    """The gradients by this rank's share of the documents, and on every rank those by all mixtures (more, D). share: of
    the documents and mixtures in `order`, as computed here."""
    rank_of = wrapped.rank_of(group, docs)
    among = torch.empty(docs + more, dtype=torch.int64)
    among[order.cpu()] = wrapped.rank_of(group, docs + more)
    entries, gradient = bring(group, share, order, torch.cat([rank_of, among[docs:]]))
    first, last = group.share(docs)
    own = entries < docs
    by_docs = share.new_zeros((last - first, share.shape[1])).index_copy_(0, entries[own] - first, gradient[own])
    by_more = share.new_zeros((more, share.shape[1])).index_copy_(0, entries[~own] - docs, gradient[~own])
    return by_docs, group.sum_(by_more) if more else by_more


def _fresh(relation: Relation, count: int, clock: Clock) -> Tensor:
    """(count, 2) ids that no Item of the batch has: their first half is none of theirs."""
    taken = torch.cat([relation.query_id, relation.doc_id, relation.known_id])[:, 0]
    for attempt in itertools.count():
        half = counter.bits("mixtures", clock.seed, clock.step, attempt) - (1 << 63)
        if not bool((taken == half).any()):
            break
    number = torch.arange(count, device=taken.device)
    return torch.stack([torch.full_like(number, half), number], 1)
