"""How well the vectors of a batch stand: accuracy, loss by source, alignment, uniformity, effective rank, examples.

All from a sample of the queries against all documents of the batch, tile by tile: cheap enough for every few steps.
What may count for a query is what InfoNCE lets count: nothing that is known to be right for it, nor its own Item.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..data.relation import Relation, of_queries
from .asked import Asked
from .loss import Bound, nested
from .objectives.infonce import InfoNCE
from .objectives.rowwise import Rowwise
from .objectives.types import Contrastive

NAN = float("nan")
_TILE = 4096  # documents scored at a time


@dataclass(frozen=True)
class Checkup:
    """How often and how closely a stage looks at its vectors. every, examples_every: steps, 0 for never; where a batch
    is of one source, a look tells of that source alone. sample: queries; shown: queries whose best `top` documents are
    written out."""

    every: int = 5
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
    """NaN where nothing could be measured. rows: sampled queries with an answer and something to mistake it for.

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
    keep = torch.ones_like(relation.query_source, dtype=torch.bool) if keep is None else keep.to(relation.owner.device)
    part, queries, docs = of_queries(relation, keep)
    if not bool(part.positive.any()):
        return Health()
    chance, able = np.random.default_rng(seed), np.unique(part.owner[part.positive].cpu().numpy())
    rows = np.sort(chance.choice(able, min(sample, len(able)), replace=False))
    picked = np.sort(chance.choice(len(rows), min(shown, len(rows)) if top else 0, replace=False))
    device, query_at, doc_at = vectors.device, queries.cpu()[rows], docs.cpu()
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        dtype = torch.float64 if vectors.dtype == torch.float64 else torch.float32
        query = vectors[query_at.to(device)].to(dtype)
        view = _View(vectors, query, doc_at + len(relation.query_id), Asked.of(part, rows, like or InfoNCE()))
        scores = view.pairs(view.asked.right)
        rivals = _Rivals.of(view, scale, torch.from_numpy(picked).to(device), top)
        first = torch.from_numpy(view.asked.right[:, 0])
        sides = (
            _distinct(query, relation.query_id.cpu()[query_at]),
            _distinct(view.docs(first), part.doc_id.cpu()[first]),
        )
        spread = [u for u in map(uniformity, sides) if not math.isnan(u)]
        return replace(
            _compare(scores, rivals, scale, part.query_source.cpu().numpy()[rows]),
            uniformity=sum(spread) / len(spread) if spread else NAN,
            effective_rank=effective_rank(torch.cat(sides)),
            examples=tuple(
                Found(int(query_at[i]), _hits(view.asked.right[i], scores[i], k, rivals, doc_at, top))
                for k, i in enumerate(picked)
            ),
        )


def task_of(bounds: Sequence[Bound]) -> tuple[frozenset[int], InfoNCE]:
    """The sources (by index) that have an in-batch task at all, and the InfoNCE that says what counts in it: the first
    one, or one of the fields of the first row-wise objective, or the default where there is neither."""
    inner = [(b.groups, tuple(nested(o))) for b in bounds for o in b.objectives]
    groups = frozenset(g for of, os in inner if isinstance(os[-1], Contrastive) for g in of)
    told = next((o for _, os in inner for o in os if isinstance(o, InfoNCE | Rowwise)), InfoNCE())
    return groups, told if isinstance(told, InfoNCE) else told.options


def uniformity(vectors: Tensor) -> float:
    """log mean exp(-2 |x - y|^2) over the pairs of different rows of vectors (n, D); NaN below two rows."""
    n = len(vectors)
    if n < 2:
        return NAN
    x = vectors.double()
    square = x.square().sum(1)
    distance = (square[:, None] + square - 2 * (x @ x.T)).clamp(min=0)
    upper = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
    return float(torch.logsumexp(-2 * distance[upper], 0)) - math.log(n * (n - 1) / 2)


def effective_rank(vectors: Tensor) -> float:
    """exp of the entropy of the singular values of vectors (n, D), divided by their sum: 1 to min(n, D)."""
    x = vectors.double()
    # The eigenvalues of the smaller Gram matrix are the squares: ten times as fast as the singular values.
    gram = (x @ x.T if len(x) <= x.shape[1] else x.T @ x).cpu()
    if not gram.numel() or not bool(gram.isfinite().all()):
        return NAN
    squares = torch.linalg.eigvalsh(gram)
    squares = torch.where(squares > 1e-12 * squares[-1], squares, 0.0)  # below, round-off of the largest
    share = squares.sqrt() / squares.sqrt().sum()
    return float(torch.special.entr(share).sum().exp())


@dataclass(frozen=True)
class _View:
    """The sampled queries and all documents that may be asked about."""

    vectors: Tensor  # (Q + N, D)
    query: Tensor  # (s, D)
    doc_at: Tensor  # (n,) int64, host: where each document stands in `vectors`
    asked: Asked

    def docs(self, which: Tensor) -> Tensor:
        return self.vectors[self.doc_at[which].to(self.vectors.device)].to(self.query.dtype)

    def pairs(self, docs: np.ndarray) -> Tensor:
        """Cosines (s, w) of each query with documents of its own, docs (s, w); -inf where docs is -1."""
        at = torch.from_numpy(docs)
        columns = [(self.query * self.docs(column.clamp(min=0))).sum(1) for column in at.T]
        out = torch.stack(columns, 1) if columns else self.query.new_empty(len(at), 0)
        return out.masked_fill((at < 0).to(out.device), -math.inf)

    def tiles(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Cosines (s, t) with documents that may count against a query, -inf where one may not; and which they are."""
        device = self.vectors.device
        for start in range(0, len(self.asked.columns), _TILE):
            docs = self.asked.columns[start : start + _TILE]
            places = torch.from_numpy(docs)
            scores = self.query @ self.docs(places).T
            scores.view(-1)[torch.from_numpy(self.asked.masked(start, len(docs))).to(device)] = -math.inf
            other = self.asked.other(docs)
            if other is not None:
                scores = scores.masked_fill(torch.from_numpy(other).to(device), -math.inf)
            yield scores, places.to(device).expand(scores.shape)
        if self.asked.own.size:
            yield self.pairs(self.asked.own), torch.from_numpy(self.asked.own).to(device)


@dataclass(frozen=True)
class _Rivals:
    """What stands against the sampled queries: the best cosine, the log-sum-exp of scaled cosines, and the top ones."""

    best: Tensor  # (s,)
    norm: Tensor  # (s,)
    scores: Tensor  # (shown, top)
    docs: Tensor  # (shown, top)

    @staticmethod
    def of(view: _View, scale: float, picked: Tensor, top: int) -> _Rivals:
        none = torch.full_like(view.query[:, 0], -math.inf)
        out = _Rivals(none, none, none.new_empty(len(picked), 0), picked.new_empty(len(picked), 0))
        for scores, docs in view.tiles():
            seen = torch.cat([out.scores, scores[picked]], 1)
            best, at = seen.topk(min(top, seen.shape[1]), dim=1)
            out = _Rivals(
                torch.maximum(out.best, scores.amax(1)),
                torch.logaddexp(out.norm, torch.logsumexp(scale * scores, 1)),
                best,
                torch.cat([out.docs, docs[picked]], 1).gather(1, at),
            )
        return out


def _compare(right: Tensor, rivals: _Rivals, scale: float, source: np.ndarray) -> Health:
    """right (s, w): cosines of right answers, -inf for none."""
    there = right != -math.inf
    gap = torch.logaddexp(rivals.norm[:, None] - scale * right, right.new_zeros(()))
    loss = (torch.where(there, gap, 0.0).sum(1) / there.sum(1)).cpu().numpy()
    won = (right.amax(1) > rivals.best).cpu().numpy()
    counts = (rivals.best != -math.inf).cpu().numpy()  # something to mistake the answer for
    sources = [int(g) for g in np.unique(source)]
    return Health(
        rows=int(counts.sum()),
        accuracy=float(won[counts].mean()) if counts.any() else NAN,
        alignment=float((2 - 2 * right[there]).clamp(min=0).mean()),
        losses={g: float(loss[source == g].mean()) for g in sources},
        accuracies={g: float(won[m].mean()) for g in sources if (m := counts & (source == g)).any()},
    )


def _hits(right: np.ndarray, scores: Tensor, k: int, rivals: _Rivals, doc_at: Tensor, top: int) -> tuple[Hit, ...]:
    """The best documents of the k-th example, whose right answers are `right` with `scores`."""
    pairs = [(d, s, True) for d, s in zip(right.tolist(), scores.tolist(), strict=True) if d >= 0]
    found = zip(rivals.docs[k].tolist(), rivals.scores[k].tolist(), strict=True)
    pairs += [(d, s, False) for d, s in found if s != -math.inf]
    best = sorted(pairs, key=lambda pair: -pair[1])[:top]
    return tuple(Hit(int(doc_at[doc]), score, true) for doc, score, true in best)


def _distinct(vectors: Tensor, identity: Tensor) -> Tensor:
    """One vector for each Item: the same document drawn twice is no collapse."""
    first = np.unique(identity.numpy(), axis=0, return_index=True)[1]
    return vectors[torch.from_numpy(np.sort(first)).to(vectors.device)]
