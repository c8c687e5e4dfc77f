"""Which document is whose: the Relation of one batch, as flat arrays of size Q and N (never Q x N).

Documents are ordered query by query: the positives of query 0, its negatives, the positives of query 1, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .types import Example


def id_pair(identity: str) -> tuple[int, int]:
    """Two signed 64-bit integers from an id (the 128-bit BLAKE2b digest of the string)."""
    from hashlib import blake2b

    raw = blake2b(identity.encode(), digest_size=16).digest()
    return int.from_bytes(raw[:8], "little", signed=True), int.from_bytes(raw[8:], "little", signed=True)


@dataclass(frozen=True)
class Relation:
    """All tensors int64 on one device unless said. Q queries, N documents, K known ids in all."""

    query_id: Tensor  # (Q, 2)
    query_label: Tensor  # (Q, 2) id_pair of the label; (0, 0) where there is none
    query_source: Tensor  # (Q,) index of the source
    owner: Tensor  # (N,) the query that this document was drawn for
    positive: Tensor  # (N,) bool
    rank: Tensor  # (N,) k-th positive or k-th negative of its owner
    doc_id: Tensor  # (N, 2)
    known_id: Tensor  # (K, 2) ids of right answers, drawn or not, that are among the documents
    known_query: Tensor  # (K,) whose, ascending
    scores: Mapping[str, Tensor] = field(default_factory=dict)  # by name, (N,) float32 each, NaN where there is none

    @property
    def score(self) -> Tensor:
        """(N,) the "label" score."""
        given = self.scores.get("label")
        return torch.full((len(self.owner),), torch.nan, device=self.owner.device) if given is None else given

    def to(self, device: torch.device | str) -> Relation:
        moved = {name: t.to(device) for name, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, **moved, scores={name: t.to(device) for name, t in self.scores.items()})

    @staticmethod
    def of(examples: Sequence[Example], sources: Sequence[str]) -> Relation:
        """The Relation of examples whose positives and negatives are those drawn for this batch."""
        index = {name: i for i, name in enumerate(sources)}
        docs = [
            (q, kind, k, item, k + (0 if kind else len(e.positives)))
            for q, e in enumerate(examples)
            for kind, items in ((True, e.positives), (False, e.negatives))
            for k, item in enumerate(items)
        ]
        # A row may know hundreds of right answers; only those that stand in this batch can be told from wrong ones.
        here = {d[3].id for d in docs}
        known = [
            (q, i)
            for q, e in enumerate(examples)
            for i in dict.fromkeys([*(p.id for p in e.positives), *e.known])
            if i in here
        ]

        def ids(strings: list[str]) -> Tensor:
            return torch.tensor([id_pair(s) for s in strings], dtype=torch.int64).reshape(-1, 2)

        def longs(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64)

        names = sorted({name for e in examples for name in e.scores})

        def scores(name: str) -> Tensor:
            given = [examples[q].scores.get(name, ()) for q, *_ in docs]
            at = [d[4] for d in docs]
            values = [g[i] if i < len(g) else float("nan") for g, i in zip(given, at, strict=True)]
            return torch.tensor(values, dtype=torch.float32)

        labels = [id_pair(e.label) if e.label else (0, 0) for e in examples]
        return Relation(
            query_id=ids([e.query.id for e in examples]),
            query_label=torch.tensor(labels, dtype=torch.int64).reshape(-1, 2),
            query_source=longs([index[e.source] for e in examples]),
            owner=longs([d[0] for d in docs]),
            positive=torch.tensor([d[1] for d in docs], dtype=torch.bool),
            rank=longs([d[2] for d in docs]),
            doc_id=ids([d[3].id for d in docs]),
            known_id=ids([i for _, i in known]),
            known_query=longs([q for q, _ in known]),
            scores={name: scores(name) for name in names},
        )


def of_queries(relation: Relation, keep: Tensor) -> tuple[Relation, Tensor, Tensor]:
    """The Relation of the queries where `keep` (Q,) is true and of their documents; with both sets' old indices."""
    queries = keep.nonzero().squeeze(1)
    docs = keep[relation.owner].nonzero().squeeze(1)
    known = keep[relation.known_query].nonzero().squeeze(1)
    renumbered = keep.to(torch.int64).cumsum(0) - 1
    out = Relation(
        query_id=relation.query_id[queries],
        query_label=relation.query_label[queries],
        query_source=relation.query_source[queries],
        owner=renumbered[relation.owner[docs]],
        positive=relation.positive[docs],
        rank=relation.rank[docs],
        doc_id=relation.doc_id[docs],
        known_id=relation.known_id[known],
        known_query=renumbered[relation.known_query[known]],
        scores={name: t[docs] for name, t in relation.scores.items()},
    )
    return out, queries, docs
