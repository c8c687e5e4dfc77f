"""Above: an objective for rows whose pair has a high enough score, as InfoNCE over graded pairs needs it.

Rows below are out altogether: a pair of low score is no answer, yet often too near to be a fair negative.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from ...data.relation import Relation, of_queries
from ...data.schedules import Schedule
from ...data.types import Clock
from ..gather import Group
from . import wrapped
from .types import Graded, NoScoreError, SumCount, scores_of
from .wrapped import Inner


@dataclass(frozen=True)
class Above:
    """`of` over the rows whose first positive has the score `name` of at least `score`: the thresholded InfoNCE of
    graded pairs (CoDiEmb, arXiv:2508.11442, which takes it on a middle layer). The other rows are no queries, and their
    documents, hard negatives included, are no negatives. The weight of `of` is not used.
    """

    of: Inner
    score: float = 0.8
    name: str = "label"
    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        wrapped.checked("Above", self.of)

    @property
    def stepped(self) -> bool:
        return wrapped.stepped(self.of)

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        """As Contrastive.contrast. Where no row is left, a zero that hangs on the graph, of count 0. Raises
        NoScoreError for a row whose first positive has no such score, or that lacks what `of` goes by."""
        part, queries, answers = self._rows(relation)
        if not len(queries):
            return SumCount(query[:0].sum() + docs[:0].sum() + scale[:0].sum(), 0)
        with _named(queries):
            return wrapped.contrast(self.of, query[queries], docs[answers], part, scale, clock)

    def sharded(
        self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded:
        part, queries, answers = self._rows(relation)
        if not len(queries):
            shares = (t[slice(*group.share(len(t)))] for t in (query, docs))
            return Graded(query.new_zeros(()), 0, *(t.new_zeros(t.shape) for t in (*shares, scale)))
        with _named(queries):
            out = wrapped.divided(self.of, query[queries], docs[answers], part, scale, clock, group)
        d_query = wrapped.home(group, out.d_query, queries, len(query))
        d_docs = wrapped.home(group, out.d_docs, answers, len(docs))
        return Graded(out.sum, out.count, d_query, d_docs, out.d_scale)

    def _rows(self, relation: Relation) -> tuple[Relation, Tensor, Tensor]:
        first = (relation.positive & (relation.rank == 0)).nonzero().squeeze(1)
        keep = relation.query_source.new_zeros(len(relation.query_id)).bool()
        keep[relation.owner[first]] = scores_of(relation, self.name, first) >= self.score
        return of_queries(relation, keep)


@contextmanager
def _named(queries: Tensor) -> Iterator[None]:
    """The row that `of` finds without what it needs, as the whole Relation numbers it. queries: those that are left."""
    try:
        yield
    except NoScoreError as error:
        raise NoScoreError(int(queries[error.query]), error.lacks) from error
