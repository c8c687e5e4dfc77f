"""Words beside vectors: BM25 over the texts of a pool, its ranks fused with those of the vectors (LG-ANNA's teacher,
arXiv:2506.07438; reciprocal rank fusion, Cormack, Clarke and Buettcher, SIGIR 2009)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.types import DataError, Item, Text
from .pool import Pool

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Fused:
    """Candidates by 1 / (k + rank by vectors) + weight / (k + rank by words), rank from 1; one that a list lacks gets
    nothing from it. Only texts have words: items of pictures alone are an error. Needs pip install "omni2vec[mine]"."""

    weight: float = 1.0
    k: int = 60

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight) and self.k >= 0):
            raise ValueError(f"Fused({self.weight}, {self.k}): expected a weight above 0, and k of 0 or more")


@dataclass(frozen=True)
class Words:
    """An index over the candidates of a pool, in memory."""

    pool: Pool
    index: Any

    @staticmethod
    def of(pool: Pool) -> Words:
        needs_bm25()
        bm25s = import_module("bm25s")
        texts = [_words(item, example.key) for example, item in map(pool.item, range(pool.candidates))]
        index = bm25s.BM25()
        index.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)
        return Words(pool, index)

    def top(self, row: int, count: int) -> Longs:
        """At most `count` candidates that share a word with the row's query, best first; equal ones in pool order."""
        bm25s = import_module("bm25s")
        example = self.pool.rows[row]
        tokens = bm25s.tokenize(
            _words(example.query, example.key), stopwords=None, show_progress=False, return_ids=False
        )
        known = [t for t in tokens[0] if t in self.index.vocab_dict]
        if not known:
            return np.zeros(0, np.int64)
        scores = self.index.get_scores(known)[: self.pool.candidates]
        scores[self.pool.barred(row)] = 0
        found = np.flatnonzero(scores > 0)
        order: Longs = found[np.argsort(-scores[found], kind="stable")][:count]
        return order


def fuse(vectors: Longs, words: Longs, how: Fused, count: int) -> Longs:
    """The best `count` of two lists of candidates, each best first; of equal ones, what the vectors rank first."""
    union = np.array(list(dict.fromkeys([*vectors.tolist(), *words.tolist()])), np.int64)
    total = np.zeros(len(union))
    for ranked, weight in ((vectors, 1.0), (words, how.weight)):
        place = {c: i for i, c in enumerate(ranked.tolist(), 1)}
        total += [weight / (how.k + place[c]) if c in place else 0.0 for c in union.tolist()]
    return union[np.argsort(-total, kind="stable")[:count]]


def _words(item: Item, key: str) -> str:
    text = " ".join(part.text for part in item.parts if isinstance(part, Text))
    if not text.strip():
        raise DataError(f"{key}: an item without a text, which no word finds; mine this source without Fused()")
    return text


def needs_bm25() -> None:
    import importlib.util

    if importlib.util.find_spec("bm25s") is None:
        raise ImportError('bm25s is not installed: pip install "omni2vec[mine]"')
