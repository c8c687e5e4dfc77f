"""Graded pairs: the cosine of each query and its first positive, beside the label of that pair."""

from __future__ import annotations

from torch import Tensor

from ...data.relation import Relation
from .types import scores_of


def pairs(query: Tensor, docs: Tensor, relation: Relation, score: str = "label") -> tuple[Tensor, Tensor]:
    """query (Q, D), docs (N, D), unit length -> cosines (B,) and their scores (B,), in the order of the queries that
    have a positive. Raises NoScoreError for a pair without a score."""
    first = (relation.positive & (relation.rank == 0)).nonzero().squeeze(1)
    cosine = (query[relation.owner[first]] * docs[first]).sum(-1)
    return cosine, scores_of(relation, score, first).to(cosine.dtype)
