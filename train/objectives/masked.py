"""Masked: negatives that are nearer than the right answer by more than a margin are taken for right answers."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor

from ...data.schedules import Schedule, at, ends
from .rowwise import Rowwise
from .seen import Seen, log_sum, softplus


@dataclass(frozen=True)
class Masked(Rowwise):
    """InfoNCE without the negatives j of which s_ij > s_i + margin, s_i the cosine of the positive (Qwen3-Embedding,
    arXiv:2506.05176; Qwen3-VL-Embedding). The mask is a constant to the gradient and is the positive's own: with
    several positives each has another. margin=inf masks nothing (InfoNCE), -inf all (0).

    query_query, doc_doc: the row's denominator also holds its query against the other queries, and its positive
    against the other rows' positives, masked by the same margin. By identity, class and source, what is no negative of
    the query is none of its positive; nor is a query of which a right answer is right for this one. Qwen3-VL-Embedding
    has both terms in its first stage alone. With both=True they stand in the query's direction only.

    Class data (arXiv:2506.05176 takes only the wrong labels that are given): in_batch=False, negatives="own".
    """

    margin: float | Schedule = 0.1
    query_query: bool = False
    doc_doc: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(isnan(m) for m in ends(self.margin)):
            raise ValueError(f"Masked: margin={self.margin}; expected a number, 0.1 in the paper, inf to mask nothing")
        if (self.query_query or self.doc_doc) and not self.in_batch:
            raise ValueError(
                "Masked: query_query or doc_doc with in_batch=False: both hold a row against the other rows of its "
                "batch; set in_batch=True or leave both off"
            )

    @property
    def beside(self) -> tuple[bool, bool]:
        return self.query_query, self.doc_doc

    def losses(self, seen: Seen) -> Tensor:
        most = (seen.positive.detach() + at(self.margin, seen.clock.progress))[:, None]
        terms = [
            log_sum(seen.scale * cosine, negative & (cosine.detach() <= most))
            for cosine, negative in ((seen.cosine, seen.negative), *((o.cosine, o.negative) for o in seen.beside))
        ]
        norm = terms[0] if len(terms) == 1 else torch.stack(terms).logsumexp(0)
        return softplus(norm - seen.scale * seen.positive)
