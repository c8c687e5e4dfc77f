"""Similarity: the likenesses that a teacher sees within a batch, distilled into the student's, row by row.

The teacher is another encoder's vectors, of any dimension, kept by Item: only likenesses are compared. A block of rows
with all its columns exists at a time, never Q x N numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ...data.mix import folder_of
from ...data.relation import Relation
from ...data.schedules import Schedule
from ...data.types import Clock, DataError, Step, Where
from ...data.vectors import DOCUMENT, QUERY, Vectors
from ..gather import Group
from .types import Graded, NoScoreError, SumCount

Kind = Literal["rows", "both"]


@dataclass(frozen=True)
class Similarity:
    """KL(teacher || student) between softmaxes of cosines over the batch's documents: contrastive distillation (KaLM,
    arXiv:2506.20923, whose temperature is best at 0.05). "both" is the mean with the other direction, each document
    over the batch's queries (WeMM-Embedding's bidirectional distillation; this form of it is ours). A sum over queries
    and their number.

    teacher: an Embedded step, or the folder that one has made. teacher_temperature, temperature: of the teacher and of
    the student; None is the embedder's own. Copies of a document share the weight of one, and so do those of a query:
    however often an Item was drawn, it takes part once in a softmax. Right answers and the query's own Item are
    documents like any other: the teacher says how alike they are. tile: a block of logits holds at most max(tile**2, N)
    numbers.
    """

    teacher: Step | str
    temperature: float | None = None
    teacher_temperature: float | None = 0.05
    kind: Kind = "both"
    tile: int = 1536
    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Similarity: kind={self.kind!r}; expected one of {', '.join(get_args(Kind))}")
        for name in ("temperature", "teacher_temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"Similarity: {name}={value}; expected a number above 0, or None for the embedder's")
        if self.tile < 1:
            raise ValueError(f"Similarity: tile={self.tile}; expected 1 or more (1536 is a good start)")

    def outside(self, where: Where) -> dict[str, str]:
        """The digest of vectors that no step of the recipe made."""
        return (
            {f"vectors {self.teacher}": Tables.open(Path(self.teacher)).digest} if isinstance(self.teacher, str) else {}
        )

    def opened(self, where: Where) -> Taught:
        """With the teacher's vectors, mapped. Raises DataError where they are missing or of two teachers."""
        return Taught(self, Tables.open(folder_of(self.teacher, where)))

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        raise ValueError(
            "Similarity: its teacher's vectors are not open; a stage opens them, elsewhere call opened(where)"
        )


@dataclass(frozen=True)
class Tables:
    """Both tables of a teacher."""

    query: Vectors
    document: Vectors

    @staticmethod
    def open(folder: Path) -> Tables:
        query, document = (Vectors.open(folder / name) for name in (QUERY, DOCUMENT))
        told = [t.about.get("teacher", "") for t in (query, document)]
        if told[0] != told[1] or query.dim != document.dim:
            raise DataError(
                f"{folder}: {QUERY} is by teacher {told[0][:8]} with {query.dim} components, {DOCUMENT} by "
                f"{told[1][:8]} with {document.dim}; both must be of one teacher: make the folder again"
            )
        return Tables(query, document)

    @property
    def digest(self) -> str:
        """What both tables were said to be when they were written."""
        return "-".join(t.about.get("digest", t.about.get("teacher", "")) for t in (self.query, self.document))


@dataclass(frozen=True)
class Taught:
    """A Similarity whose teacher is open."""

    given: Similarity
    tables: Tables

    @property
    def weight(self) -> float | Schedule:
        return self.given.weight

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        """query (Q, D), docs (N, D), unit length, scale (1,). Raises NoScoreError for an Item without a vector."""
        work = self._work(query, docs, relation, scale)
        loss: Tensor = _Distilled.apply(query, docs, scale, work)
        return SumCount(loss, len(query))

    def sharded(
        self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded:
        """The value of `contrast` and this rank's share of its gradients: each rank does its rows, all sum."""
        work = self._work(query, docs, relation, scale)
        with torch.no_grad():
            loss, d_query, d_docs, d_scale = work.run(query, docs, scale, group)
            loss, d_scale = group.sum_(torch.cat([loss.reshape(1), d_scale])).split(1)
            d_query, d_docs = group.sum_(d_query), group.sum_(d_docs)
        rows, columns = (slice(*group.share(n)) for n in (len(query), len(docs)))
        return Graded(loss[0], len(query), d_query[rows], d_docs[columns], d_scale)

    def _work(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor) -> _Work:
        o, dtype = self.given, torch.float64 if query.dtype == torch.float64 else torch.float32
        taught_query = self._of("query", self.tables.query, relation.query_id, torch.arange(len(query)))
        taught_docs = self._of("document", self.tables.document, relation.doc_id, relation.owner)
        heat = float(scale.detach()) if o.teacher_temperature is None else 1 / o.teacher_temperature
        return _Work(
            teacher=(taught_query.to(query.device, dtype), taught_docs.to(query.device, dtype)),
            shares=(_share(relation.query_id, dtype), _share(relation.doc_id, dtype)),
            heat=heat,
            own=o.temperature,
            both=o.kind == "both",
            tile=o.tile,
        )

    def _of(self, name: str, table: Vectors, ids: Tensor, rows: Tensor) -> Tensor:
        places = table.lookup(ids.cpu().numpy())
        if missing := np.flatnonzero(places < 0).tolist():
            row = int(rows[missing[0]])
            raise NoScoreError(
                row,
                f"no vector of a teacher for its {name}, in {table.path}; give the Embedded step this source too, and "
                "embed again where its rows have changed",
            )
        return torch.from_numpy(table.rows(places))


@dataclass(frozen=True)
class _Work:
    """Both directions of one batch. teacher: vectors of queries and documents; shares: the logarithm of one over how
    often each Item stands there; heat: the teacher's inverse temperature; own: the student's temperature."""

    teacher: tuple[Tensor, Tensor]
    shares: tuple[Tensor, Tensor]
    heat: float
    own: float | None
    both: bool
    tile: int

    def run(
        self, query: Tensor, docs: Tensor, scale: Tensor, group: Group | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sum over queries (), and its gradients by query, docs and scale: of all rows, or this rank's of them."""
        group, dtype = group or Group(), self.teacher[0].dtype
        vectors = (query.detach().to(dtype), docs.detach().to(dtype))
        factor = scale.detach().to(dtype) if self.own is None else scale.new_full((1,), 1 / self.own, dtype=dtype)
        gradients = (torch.zeros_like(vectors[0]), torch.zeros_like(vectors[1]))
        loss, d_factor = vectors[0].new_zeros(()), vectors[0].new_zeros(())
        for side in (0, 1) if self.both else (0,):
            share = (0.5 if self.both else 1.0) * (1.0 if side == 0 else len(query) / max(len(docs), 1))
            for rows in self._blocks(*group.share(len(vectors[side])), len(vectors[1 - side])):
                found = self._block(vectors, factor, side, rows)
                loss += share * found[0]
                pushed = share * found[1]  # by the cosines, less the factor
                d_row = pushed @ vectors[1 - side]
                d_factor += (d_row * vectors[side][rows]).sum()
                gradients[side][rows] += factor * d_row
                gradients[1 - side].addmm_(pushed.T, factor * vectors[side][rows])
        d_scale = d_factor.reshape(1) if self.own is None else torch.zeros_like(factor)
        return loss, *gradients, d_scale

    def _blocks(self, first: int, last: int, width: int) -> Sequence[slice]:
        rows = max(1, self.tile * self.tile // max(width, 1))
        return [slice(a, min(a + rows, last)) for a in range(first, last, rows)]

    def _block(self, vectors: tuple[Tensor, Tensor], factor: Tensor, side: int, rows: slice) -> tuple[Tensor, Tensor]:
        """The KL of some rows, summed, and its gradient by their logits (r, columns)."""
        other = 1 - side
        student = torch.addmm(self.shares[other], factor * vectors[side][rows], vectors[other].T).log_softmax(1)
        taught = torch.addmm(self.shares[other], self.heat * self.teacher[side][rows], self.teacher[other].T)
        taught = taught.log_softmax(1)
        p = taught.exp()
        return (p * taught.sub_(student)).sum(), student.exp_().sub_(p)


class _Distilled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, docs: Tensor, scale: Tensor, work: _Work) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            loss, *gradients = work.run(query, docs, scale)
        ctx.save_for_backward(*(g.to(t.dtype) for g, t in zip(gradients, (query, docs, scale), strict=True)))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        d_query, d_docs, d_scale = ctx.saved_tensors
        return gradient[0] * d_query, gradient[0] * d_docs, (gradient[0] * d_scale).reshape(d_scale.shape), None


def _share(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """(n,): minus the logarithm of how often each id (n, 2) is among them."""
    _, which, counts = torch.unique(ids, dim=0, return_inverse=True, return_counts=True)
    share: Tensor = -counts[which].to(dtype).log()
    return share
