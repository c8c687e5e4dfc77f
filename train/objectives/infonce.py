"""InfoNCE: a query against its right answers, given hard negatives and the other rows' documents, tile by tile.

A document that is known to be right for the query, or is the query's own Item, is never its negative, whatever the
options say: identity is checked inside the tile, and no array of size Q x N exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ...data.relation import Relation
from ...data.types import Clock
from ..gather import Group
from .negatives import Negatives
from .sharded import graded, pieces
from .tiles import info_nce, with_gradients
from .types import Graded, SumCount

Given = Literal["shared", "own"]


@dataclass(frozen=True)
class InfoNCE:
    """Noise-contrastive estimation (arXiv:1807.03748) with several positives (CoDiEmb, arXiv:2508.11442): the mean over
    the positives of a query of the cross-entropy of each against the negatives, so that its optimum is 0 for any number
    of positives. The result is a sum over queries and the number of queries that have a positive.

    negatives: given hard negatives are seen by every query ("shared") or by their own query only ("own").
    in_batch: the other rows' positives are negatives.
    both: the mean with the document-to-query direction, in which each positive document looks for its query among all
        queries. The documents of one query share its weight: both directions are means over queries. A query is no
        negative of a document that it knows as right, so neither is one equal to the document's own query.
    mask_labels: rows of one class (equal `label`, not empty) mask each other's documents, hard negatives included
        (QZhou, arXiv:2508.21632); the row's own hard negatives stay.
    across_sources: documents of other sources are negatives too. Off, a source meets only itself.
    tile: a block of logits holds at most max(tile**2, tile / 8 * N) numbers. 1536 suits a CPU's caches; 4096 a GPU.
    """

    weight: float = 1.0
    negatives: Given = "shared"
    in_batch: bool = True
    both: bool = False
    mask_labels: bool = False
    across_sources: bool = False
    tile: int = 1536

    def __post_init__(self) -> None:
        if self.negatives not in get_args(Given):
            raise ValueError(f"InfoNCE: negatives={self.negatives!r}; expected one of {', '.join(get_args(Given))}")
        if self.tile < 1:
            raise ValueError(f"InfoNCE: tile={self.tile}; expected 1 or more (1536 is a good start)")
        if self.both and not self.in_batch:
            raise ValueError(
                "InfoNCE: both=True with in_batch=False: the other rows' queries are the only negatives of a document, "
                "so the second direction would be zero; set in_batch=True or both=False"
            )

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        """query (Q, D), docs (N, D), L2-normalised, scale (1,). Computed in float64 if the query is, else in float32,
        under autocast too. Rows without negatives give 0."""
        _check(query, docs, relation, scale)
        negatives = self._negatives(relation)
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        with torch.autocast(query.device.type, enabled=False):
            loss = info_nce(query.to(dtype), docs.to(dtype), scale.to(dtype), negatives, self.tile, self.both)
        return SumCount(loss, negatives.count)

    def sharded(
        self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded:
        """The value of `contrast` over the whole batch and this rank's share of its gradients. Operands as there, equal
        on all ranks; collective. With one rank it is what `contrast` computes, less the copies that autograd makes."""
        _check(query, docs, relation, scale)
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        query, docs, scale = (t.detach().to(dtype) for t in (query, docs, scale))
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            if group.size == 1:
                negatives = self._negatives(relation)
                alone = with_gradients(query, docs, scale, negatives, self.tile, self.both)
                return Graded(alone[0], negatives.count, *alone[1:])
            negatives = self._negatives(relation, group.share(len(query)), pieces(len(docs), group))
            return graded(query, docs, scale, negatives, self.tile, self.both, group)

    def _negatives(
        self,
        relation: Relation,
        rows: tuple[int, int] | None = None,
        strips: Sequence[np.ndarray] | None = None,
    ) -> Negatives:
        return Negatives.of(
            relation,
            shared=self.negatives == "shared",
            in_batch=self.in_batch,
            mask_labels=self.mask_labels,
            across_sources=self.across_sources,
            rows=rows,
            strips=strips,
        )


def _check(query: Tensor, docs: Tensor, relation: Relation, scale: Tensor) -> None:
    rows = (relation.query_id.shape[0], relation.doc_id.shape[0])
    if (query.shape[0], docs.shape[0]) != rows:
        raise ValueError(
            f"InfoNCE: {query.shape[0]} query and {docs.shape[0]} document vectors for a Relation of {rows[0]} queries "
            f"and {rows[1]} documents; pass the vectors of the Relation's rows, in its order"
        )
    if query.shape[1:] != docs.shape[1:] or query.ndim != 2:
        raise ValueError(f"InfoNCE: query {tuple(query.shape)}, docs {tuple(docs.shape)}; expected (Q, D) and (N, D)")
    if scale.numel() != 1:
        raise ValueError(f"InfoNCE: scale of shape {tuple(scale.shape)}; expected (1,)")
