"""How well the vectors of a batch stand: accuracy, loss by source, alignment, uniformity, effective rank, examples.

All from a sample of the queries against all documents of the batch, tile by tile: cheap enough for every few steps.
What may count for a query is what InfoNCE lets count: nothing that is known to be right for it, nor its own Item.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..data.relation import Relation, of_queries
from .objectives.infonce import InfoNCE
from .objectives.negatives import Negatives, spans

NAN = float("nan")


@dataclass(frozen=True)
class Checkup:
    """How often and how closely a stage looks at its vectors. every, examples_every: steps, 0 for never. sample:
    queries; shown: queries whose best `top` documents are written out."""

    every: int = 10
    sample: int = 256
    examples_every: int = 200
    shown: int = 8
    top: int = 5

    def __post_init__(self) -> None:
        for name in ("every", "sample", "examples_every", "shown", "top"):
            least = 2 if name == "sample" else 0
            if getattr(self, name) < least:
                raise ValueError(f"Checkup({name}={getattr(self, name)}): expected {least} or more")


@dataclass(frozen=True)
class Hit:
    """Document `doc` (its index among the N) at cosine `score`; right: drawn as a right answer of the query."""

    doc: int
    score: float
    right: bool


@dataclass(frozen=True)
class Found:
    """What query `query` (its index among the Q) finds in the batch, best first."""

    query: int
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Health:
    """NaN where nothing could be measured. rows: sampled queries with something to find and something to mistake it for.

    accuracy: share of them whose best right answer is above every document that may count against it (a tie is wrong).
    losses, accuracies: by index of the source; losses are InfoNCE's, query to document, over the sample. alignment:
    mean squared distance of a query and its right answers; uniformity: log of the mean Gaussian potential of pairs, the
    mean of the queries' and the documents' (arXiv:2005.10242), lower is better. effective_rank: exp of the entropy of
    the normalised singular values (RankMe, arXiv:2210.02885) of the sampled queries and documents together; it is at
    most their number, so compare it at equal samples.
    """

    rows: int = 0
    accuracy: float = NAN
    alignment: float = NAN
    uniformity: float = NAN
    effective_rank: float = NAN
    losses: Mapping[int, float] = field(default_factory=dict)
    accuracies: Mapping[int, float] = field(default_factory=dict)
    examples: tuple[Found, ...] = ()


def look(
    vectors: Tensor,
    relation: Relation,
    *,
    sample: int = 256,
    top: int = 0,
    shown: int = 8,
    seed: int,
    scale: float = 1.0,
    keep: Tensor | None = None,
    like: InfoNCE | None = None,
) -> Health:
    """vectors (Q + N, D), detached, L2-normalised, queries first and documents in the Relation's order.

    keep (Q,) bool: queries that take part, with their documents (decoded ones, of sources with a contrastive
    objective); None: all. like: the InfoNCE whose options say which documents count. top: documents of each of `shown`
    examples, 0 for none. The same (relation, seed) takes the same sample.
    """
    raise NotImplementedError


def uniformity(vectors: Tensor) -> float:
    """log mean exp(-2 |x - y|^2) over the pairs of different rows of vectors (n, D); NaN below two rows."""
    raise NotImplementedError


def effective_rank(vectors: Tensor) -> float:
    """exp of the entropy of the singular values of vectors (n, D), divided by their sum: 1 to min(n, D)."""
    raise NotImplementedError
