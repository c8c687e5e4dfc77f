"""SoftLabel: a teacher's scores of each query's own candidates, a judge's mostly, distilled into the cosines.

A query's candidates are its drawn positives and negatives, nothing else of the batch: only they have scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...data.relation import Relation
from ...data.schedules import Schedule
from ...data.types import Clock
from .types import SumCount, scores_of

Kind = Literal["kl", "ce", "symmetric", "js"]
_ROWS = 1 << 16  # documents whose products with their queries are made at a time


@dataclass(frozen=True)
class SoftLabel:
    """The divergence of softmax(scale * cosine), the student, from softmax(score / teacher_temperature), the teacher,
    over each query's candidates; a sum over the queries with two candidates or more, and their number. The others give
    0 and need no score.

    score: the name of the teacher's scores; a judge or a miner fills them. kind: "kl" is KL(teacher || student), whose
    optimum is 0 (LG-ANNA, arXiv:2506.07438, says "soft labels" and no formula: the form is ours; KaLM,
    arXiv:2506.20923); "ce" is the cross-entropy, which has the same gradient and adds the teacher's entropy;
    "symmetric" is half of KL(teacher || student) + KL(student || teacher) (UniME-V2); "js" is the Jensen-Shannon
    divergence, log 2 at most. temperature: the student's, in place of the embedder's. top: only the best `top`
    candidates by the teacher's score (U-MARVEL, arXiv:2507.14902); 0: all. fused: alpha of a teacher that adds what the
    student thinks already, cosine + alpha * score (U-MARVEL: 0.5 in the paper, 0.1 in its code); 0 is
    self-distillation. teacher_temperature: None is 1 for the scores as they are, and the student's own for a fused
    teacher, which is a cosine. Nothing of the teacher has a gradient, nor its temperature.
    """

    score: str = "rerank"
    kind: Kind = "kl"
    temperature: float | None = None
    teacher_temperature: float | None = None
    top: int = 0
    fused: float | None = None
    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"SoftLabel: kind={self.kind!r}; expected one of {', '.join(get_args(Kind))}")
        for name in ("temperature", "teacher_temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"SoftLabel: {name}={value}; expected a number above 0, or None")
        if self.top < 0 or self.top == 1:
            raise ValueError(f"SoftLabel: top={self.top}; expected 2 or more candidates a query, or 0 for all")
        if self.fused is not None and not (math.isfinite(self.fused) and self.fused >= 0):
            raise ValueError(f"SoftLabel: fused={self.fused}; expected 0 or more, or None for the scores alone")

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        """query (Q, D), docs (N, D), unit length, scale (1,). O(N) memory beside their gradients. Raises NoScoreError
        for a candidate without a finite score."""
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        owner, index = _several(relation.owner, len(query))
        with torch.autocast(query.device.type, enabled=False):
            score = scores_of(relation, self.score, index).to(dtype)
            cosine = own_cosines(query.to(dtype), docs.to(dtype), relation.owner)[index]
            scale = (
                scale.to(dtype)
                if self.temperature is None
                else torch.full_like(scale, 1 / self.temperature, dtype=dtype)
            )
            if not len(index):
                return SumCount((scale * cosine).sum(), 0)
            teacher = self._teacher(score, cosine.detach(), scale.detach())
            if self.top:
                kept = best(teacher, owner, self.top)
                owner, teacher, cosine = owner[kept], teacher[kept], cosine[kept]
            lengths = torch.unique_consecutive(owner, return_counts=True)[1]
            p, q = log_softmax(teacher, lengths), log_softmax(scale * cosine, lengths)
            return SumCount(divergence(p, q, self.kind), len(lengths))

    def _teacher(self, score: Tensor, cosine: Tensor, scale: Tensor) -> Tensor:
        """The teacher's logits. cosine and scale without gradient."""
        if self.fused is None:
            return score / (self.teacher_temperature or 1.0)
        fused = cosine + self.fused * score
        return fused * scale if self.teacher_temperature is None else fused / self.teacher_temperature


def divergence(p: Tensor, q: Tensor, kind: Kind) -> Tensor:
    """() summed: log-probabilities of the teacher p and of the student q, (n,) each."""
    match kind:
        case "kl":
            return (p.exp() * (p - q)).sum()
        case "ce":
            return -(p.exp() * q).sum()
        case "symmetric":
            return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum()
        case "js":
            middle = torch.logaddexp(p, q) - math.log(2)
            return 0.5 * (p.exp() * (p - middle) + q.exp() * (q - middle)).sum()


def log_softmax(logits: Tensor, lengths: Tensor) -> Tensor:
    """Of consecutive segments: logits (n,), lengths (s,) of 1 or more that sum to n."""
    top = torch.segment_reduce(logits.detach(), "max", lengths=lengths)
    shifted = logits - top.repeat_interleave(lengths)
    total = torch.segment_reduce(shifted.exp(), "sum", lengths=lengths)
    return shifted - total.log().repeat_interleave(lengths)


def best(score: Tensor, owner: Tensor, count: int) -> Tensor:
    """Where the `count` highest scores of each owner stand, ascending. owner (n,) is ascending; of equal scores the
    first counts."""
    order = score.argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    lengths = torch.unique_consecutive(owner, return_counts=True)[1]
    start = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    rank = torch.arange(len(owner), device=owner.device) - start
    return order[rank < count].sort().values


def own_cosines(query: Tensor, docs: Tensor, owner: Tensor) -> Tensor:
    """(N,): each document with its own query. No copy of the queries by document stays for the gradient."""
    found: Tensor = _OwnCosines.apply(query, docs, owner)
    return found


class _OwnCosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, docs: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(query, docs, owner)
        parts = [(query[o] * d).sum(-1) for o, d in zip(owner.split(_ROWS), docs.split(_ROWS), strict=True)]
        return torch.cat(parts) if parts else docs.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        query, docs, owner = ctx.saved_tensors
        d_query, d_docs = torch.zeros_like(query), torch.empty_like(docs)
        for start in range(0, len(owner), _ROWS):
            part = slice(start, start + _ROWS)
            along = gradients[0][part, None]
            d_query.index_add_(0, owner[part], along * docs[part])
            torch.mul(along, query[owner[part]], out=d_docs[part])
        return d_query, d_docs, None


def _several(owner: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """(owner, index) of the documents of queries that have two or more, query by query."""
    counts = torch.bincount(owner, minlength=queries)
    index = (counts[owner] > 1).nonzero().squeeze(1)
    index = index[owner[index].argsort(stable=True)]
    return owner[index], index
