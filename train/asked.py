"""Which documents may count for some sampled queries of a batch: the rules of InfoNCE, for those few rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.relation import Relation
from .objectives.infonce import InfoNCE
from .objectives.negatives import dense_index, spans


@dataclass(frozen=True)
class Asked:
    """Host arrays, int64 unless said. s sampled rows of Q queries, N documents, C of which every query sees."""

    right: np.ndarray  # (s, w) the documents that were drawn as each row's right answers, filled up with -1
    own: np.ndarray  # (s, v) given negatives that only the row sees, filled up with -1
    columns: np.ndarray  # (C,) ascending
    masked_row: np.ndarray  # (M,) of each pair of a row ...
    masked_place: np.ndarray  # (M,) ... and a place in `columns` that is no distractor of it: right, or its own Item
    rows: np.ndarray  # (s,) ascending
    owner: np.ndarray  # (N,) query of each document
    label: np.ndarray | None  # (Q, 2) where equal classes mask each other's documents
    source: np.ndarray | None  # (Q,) where documents of other sources do not count

    @staticmethod
    def of(relation: Relation, rows: np.ndarray, like: InfoNCE) -> Asked:
        r = relation.to("cpu")
        positive, owner, source = r.positive.numpy(), r.owner.numpy(), r.query_source.numpy()
        row, doc = _never(r, rows)
        columns = np.flatnonzero((positive & like.in_batch) | (~positive & (like.negatives == "shared")))
        own = _of_rows(owner, ~positive & (like.negatives == "own"), rows)
        wrong_after_all = np.isin(np.arange(len(rows))[:, None] * len(owner) + own, row * len(owner) + doc)
        place = np.searchsorted(columns, doc)
        seen = np.append(columns, -1)[place] == doc
        return Asked(
            right=_of_rows(owner, positive, rows),
            own=np.where(wrong_after_all, -1, own),
            columns=columns,
            masked_row=row[seen],
            masked_place=place[seen],
            rows=rows,
            owner=owner,
            label=r.query_label.numpy() if like.mask_labels else None,
            source=None if like.across_sources or bool((source == source[:1]).all()) else source,
        )

    def masked(self, start: int, width: int) -> np.ndarray:
        """Flat indices into (s, width) of the pairs that do not count among columns start, start + 1, ..."""
        inside = (self.masked_place >= start) & (self.masked_place < start + width)
        flat: np.ndarray = self.masked_row[inside] * width + self.masked_place[inside] - start
        return flat

    def other(self, docs: np.ndarray) -> np.ndarray | None:
        """(s, t) bool: documents that the row's class or source rules out; None where nothing does."""
        rows, owner = self.rows[:, None], self.owner[docs]
        out: np.ndarray | None = None
        if self.label is not None:
            equal = (self.label[rows] == self.label[owner]).all(-1)
            out = equal & (self.label[rows] != 0).any(-1) & (rows != owner)
        if self.source is not None:
            foreign = self.source[rows] != self.source[owner]
            out = foreign if out is None else out | foreign
        return out


def _never(r: Relation, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index into rows, document) of all pairs that are right, drawn or known, or equal to the row's own Item."""
    queries, docs = len(r.query_id), len(r.doc_id)
    index = dense_index(np.concatenate([x.numpy() for x in (r.query_id, r.doc_id, r.known_id)]))
    query, doc, known = index[:queries], index[queries : queries + docs], index[queries + docs :]
    positive = r.positive.numpy()
    asked = np.concatenate([query[r.known_query.numpy()], query[r.owner.numpy()[positive]], query])
    answer = np.concatenate([known, doc[positive], query])
    mine = np.isin(asked, query[rows])  # queries with equal Items share their right answers
    pairs = np.unique(np.stack([asked[mine], answer[mine]]), axis=1)
    first, last = (np.searchsorted(pairs[0], query[rows], side=side) for side in ("left", "right"))
    row, which = spans(first, last - first)
    by_id = np.argsort(doc, kind="stable")
    begin, end = (np.searchsorted(doc[by_id], pairs[1][which], side=side) for side in ("left", "right"))
    hit, place = spans(begin, end - begin)
    return row[hit], by_id[place]


def _of_rows(owner: np.ndarray, chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(s, w): the `chosen` documents (N,) of each row, one line a row, filled up with -1."""
    docs = np.flatnonzero(chosen)
    docs = docs[np.argsort(owner[docs], kind="stable")]
    start, stop = (np.searchsorted(owner[docs], rows, side=side) for side in ("left", "right"))
    step = np.arange((stop - start).max(initial=0))
    place = np.where(step < (stop - start)[:, None], start[:, None] + step, len(docs))
    out: np.ndarray = np.append(docs, -1)[place]
    return out
