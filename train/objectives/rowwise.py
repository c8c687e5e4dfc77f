"""Contrastive objectives whose loss is a sum over rows of a function of that row's cosines: one method each.

An objective says what a row costs (`losses`, plain autograd over one block). Blocks, masks, several positives, the
other direction, ranks and gradients are in blockwise.py and seen.py. No array of size Q x N outlives a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...data.relation import Relation
from ...data.schedules import Schedule
from ...data.types import Clock
from ..gather import Group
from .blockwise import Call, Weigh
from .infonce import Given, InfoNCE
from .seen import Options, Seen, softplus
from .types import Graded, SumCount


@dataclass(frozen=True)
class Rowwise(ABC):
    """The fields are those of InfoNCE and mean the same (see there); the result is a sum over queries and the number of
    queries that have a positive. A query's loss is the mean over its positives of `losses`, each against the negatives
    alone (arXiv:2508.11442). Rows without negatives give 0, whatever `losses` says."""

    weight: float | Schedule = 1.0
    negatives: Given = "shared"
    in_batch: bool = True
    both: bool = False
    mask_labels: bool = False
    across_sources: bool = False
    tile: int = 1536

    @abstractmethod
    def losses(self, seen: Seen) -> Tensor:
        """The loss (r,) of each row of a block."""

    @property
    def beside(self) -> tuple[bool, bool]:
        """Whether rows also see cosines of queries against queries, and of their answer against other answers."""
        return False, False

    @property
    def options(self) -> InfoNCE:
        """InfoNCE with the same documents for negatives."""
        return InfoNCE(
            negatives=self.negatives,
            in_batch=self.in_batch,
            both=self.both,
            mask_labels=self.mask_labels,
            across_sources=self.across_sources,
        )

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.negatives not in get_args(Given):
            raise ValueError(f"{name}: negatives={self.negatives!r}; expected one of {', '.join(get_args(Given))}")
        if self.tile < 1:
            raise ValueError(f"{name}: tile={self.tile}; expected 1 or more (1536 is a good start)")
        if self.both and not self.in_batch:
            raise ValueError(
                f"{name}: both=True with in_batch=False: the other rows' queries are the only negatives of a document, "
                "so the second direction would be zero; set in_batch=True or both=False"
            )

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        """query (Q, D), docs (N, D), L2-normalised, scale (1,). Computed in float64 if the query is, else in float32,
        under autocast too. Differentiable once in query, docs and scale."""
        return contrast(self, query, docs, relation, scale, clock)

    def sharded(
        self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded:
        """The value of `contrast` over the whole batch and this rank's share of its gradients; collective. A rank holds
        one gradient by all documents."""
        return sharded(self, query, docs, relation, scale, clock, group)


@dataclass(frozen=True)
class Plain(Rowwise):
    """InfoNCE (arXiv:1807.03748) by this engine: the same numbers as infonce.InfoNCE, which is faster."""

    def losses(self, seen: Seen) -> Tensor:
        return softplus(seen.gap())


def contrast(
    o: Rowwise, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, weigh: Weigh | None = None
) -> SumCount:
    """`weigh` gives each query's loss a weight, which is a constant to the gradient."""
    call = _call(o, query, docs, relation, scale, clock, Group())
    want = torch.is_grad_enabled() and any(t.requires_grad for t in (query, docs, scale))
    dtype = call.query.dtype
    with torch.autocast(query.device.type, enabled=False):
        loss = _Blocks.apply(query.to(dtype), docs.to(dtype), scale.to(dtype), call, weigh, want)
    return SumCount(loss, call.index.count)


def sharded(
    o: Rowwise,
    query: Tensor,
    docs: Tensor,
    relation: Relation,
    scale: Tensor,
    clock: Clock,
    group: Group,
    weigh: Weigh | None = None,
) -> Graded:
    call = _call(o, query, docs, relation, scale, clock, group)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        return Graded(*call.graded(weigh))


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, docs: Tensor, scale: Tensor, call: Call, weigh: Weigh | None, want: bool
    ) -> Tensor:
        if not want:
            return call.value(weigh)
        loss, _, *gradients = call.graded(weigh)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad * saved for saved in ctx.saved_tensors), None, None, None)


def _call(
    o: Rowwise, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
) -> Call:
    _check(type(o).__name__, query, docs, relation, scale)
    options = Options(o.negatives == "shared", o.in_batch, o.both, o.mask_labels, o.across_sources, *o.beside)
    return Call.of(o.losses, options, o.tile, relation, (query, docs, scale), clock, group)


def _check(name: str, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor) -> None:
    rows = (relation.query_id.shape[0], relation.doc_id.shape[0])
    if (query.shape[0], docs.shape[0]) != rows:
        raise ValueError(
            f"{name}: {query.shape[0]} query and {docs.shape[0]} document vectors for a Relation of {rows[0]} queries "
            f"and {rows[1]} documents; pass the vectors of the Relation's rows, in its order"
        )
    if query.shape[1:] != docs.shape[1:] or query.ndim != 2:
        raise ValueError(f"{name}: query {tuple(query.shape)}, docs {tuple(docs.shape)}; expected (Q, D) and (N, D)")
    if scale.numel() != 1:
        raise ValueError(f"{name}: scale of shape {tuple(scale.shape)}; expected (1,)")
