"""What mining makes of one window of rows: candidates judged by the rules, then examples with their negatives.

A window is the unit of everything: of what is kept over a kill, of what a rank does in its turn, and of a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.types import DataError, Example, Item
from ..eval.matrix import Matrix
from .judge import Judge, Pair
from .pool import Pool
from .rules import LEFT, SHORT, AnyRule, BelowJudged, Bools, Floats, Longs, View, chain
from .samples import Aggregated, Sample, pooled
from .searching import Windows
from .words import Fused, Words, fuse

WINDOW = 4096  # rows
BINS = 400  # of a histogram of cosines, over -1 to 1
_PIECE = 1 << 22  # numbers of vectors that are multiplied at a time: 32 MiB of float64


@dataclass(frozen=True)
class Judgement:
    """Rows start, start + 1, ... with their k candidates, hardest first, and what the rules made of them.

    index (n, k): candidates, -1 beyond a short list. score (n, k), positive (P,): cosines, of the pool's positives in
    order. by (n, k), row (n,): the number of the rule that dropped it (train/rules.py). stays (P,): positives that do.
    rerank (n, k), right (P,): a judge's scores, NaN where it was not asked.
    """

    start: int
    index: Longs
    score: Floats
    positive: Floats
    by: NDArray[np.int8]
    row: NDArray[np.int8]
    stays: Bools
    rerank: Floats
    right: Floats

    def __len__(self) -> int:
        return len(self.index)

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(a) for name, a in vars(self).items() if isinstance(a, np.ndarray)}
        aside = path.with_name(f".{path.name}.part")
        save_file({**arrays, "index": arrays["index"].astype(np.int32)}, aside, dict(about))
        aside.replace(path)

    @staticmethod
    def load(path: Path, start: int) -> Judgement:
        from safetensors.numpy import load_file

        arrays = load_file(path)
        return Judgement(start=start, **{**arrays, "index": arrays["index"].astype(np.int64)})


@dataclass(frozen=True)
class Documents:
    """Vectors of all documents of a pool: the candidates', and those of what is only right."""

    candidates: Matrix
    rest: Matrix | None

    def at(self, documents: Longs) -> Tensor:
        """(n, D)."""
        split = len(self.candidates)
        inside = torch.from_numpy(documents < split)
        numbers = torch.from_numpy(documents)
        first = self.candidates[numbers[inside]]
        out = first.new_empty((len(documents), first.shape[1]))
        out[inside] = first
        if self.rest is not None and not bool(inside.all()):
            out[~inside] = self.rest[numbers[~inside] - split]
        return out


@dataclass(frozen=True)
class Miner:
    """All that a window's work reads."""

    pool: Pool
    query: Matrix
    docs: Documents
    found: Windows
    rules: tuple[AnyRule, ...]
    among: int
    fused: Fused | None = None
    words: Words | None = None
    reranker: Judge | None = None  # of the rule that asks one

    def judge(self, start: int, stop: int) -> Judgement:
        index, score = (t.numpy() for t in self.found.rows(start, stop))
        if self.fused is not None and self.words is not None:
            index, score = self._with_words(start, index)
        ends = self.pool.positive_end[start:stop]
        first = int(self.pool.positive_end[start - 1]) if start else 0
        counts = np.diff(ends, prepend=first)
        owner = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        flat = self.cosines(start + owner, self.pool.positive[first : int(ends[-1])])
        asked = _Asked(self.pool, self.reranker, start, index, (owner, place))
        padded = np.full((len(index), int(counts.max())), np.nan, np.float32)
        padded[owner, place] = flat
        verdict = chain(self.rules, View(score, padded, index >= 0, asked.scores))
        none = np.full(index.shape, np.nan, np.float32)
        return Judgement(
            start,
            index,
            score,
            flat,
            verdict.by,
            verdict.row,
            verdict.positive[owner, place],
            asked.found.get("candidates", none),
            asked.found.get("positives", np.full(len(flat), np.nan, np.float32)),
        )

    def cosines(self, rows: Longs, documents: Longs) -> Floats:
        """(n,) of the query of each row with a document: float64 products rounded to float32, as a search has them."""
        width = self.query.shape[1]
        pieces = [np.zeros(0, np.float32)]
        step = max(_PIECE // width, 1)
        for begin in range(0, len(rows), step):
            some = slice(begin, begin + step)
            query = self.query[torch.from_numpy(rows[some])].double()
            pieces.append((query * self.docs.at(documents[some]).double()).sum(1).float().numpy())
        return np.concatenate(pieces)

    def _with_words(self, start: int, index: Longs) -> tuple[Longs, Floats]:
        assert self.fused is not None and self.words is not None
        out = np.full((len(index), self.among), -1, np.int64)
        for i, near in enumerate(index):
            best = fuse(near[near >= 0], self.words.top(start + i, self.among), self.fused, self.among)
            out[i, : len(best)] = best
        rows, columns = np.nonzero(out >= 0)
        score = np.full(out.shape, np.nan, np.float32)
        score[rows, columns] = self.cosines(start + rows, out[rows, columns])
        return out, score


@dataclass
class _Asked:
    """A judge's scores of a window, and the pairs that it is asked for."""

    pool: Pool
    judge: Judge | None
    start: int
    index: Longs
    positives: tuple[Longs, Longs]  # (row, place) of each
    found: dict[str, Floats] = field(default_factory=dict)

    def scores(self, rule: BelowJudged, asked: Bools, view: View) -> tuple[Floats, Floats]:
        """(n, k) and (n, p). Only rows with a candidate left are judged at all."""
        candidates = np.full(view.score.shape, np.nan, np.float32)
        positives = np.full(view.positive.shape, np.nan, np.float32)
        pairs: dict[str, list[Pair]] = {}
        places: dict[str, list[tuple[Floats, int, int]]] = {}
        for i in np.flatnonzero(asked.any(1)).tolist():
            example = self.pool.rows[self.start + i]
            right = np.flatnonzero(~np.isnan(view.positive[i])).tolist()
            wrong = np.flatnonzero(asked[i]).tolist()
            items = [example.positives[p] for p in right]
            items += [self.pool.item(int(self.index[i, c]))[1] for c in wrong]
            pairs.setdefault(example.instruction, []).extend(Pair(example.query, x, example.key) for x in items)
            at = [*((positives, i, p) for p in right), *((candidates, i, c) for c in wrong)]
            places.setdefault(example.instruction, []).extend(at)
        assert self.judge is not None
        for instruction, some in pairs.items():
            values = np.asarray(self.judge.scores(some, instruction), np.float32)
            if values.shape != (len(some),) or not np.isfinite(values).all():
                raise DataError(
                    f"{some[0].key} and others: the judge gave scores of shape {values.shape}, or some that are not "
                    f"finite; expected {len(some)} numbers"
                )
            for (into, i, place), value in zip(places[instruction], values.tolist(), strict=True):
                into[i, place] = value
        owner, slot = self.positives
        self.found = {"candidates": candidates, "positives": positives[owner, slot]}
        return candidates, positives


@dataclass(frozen=True)
class Choice:
    """How negatives are chosen of what the rules left, and written down. members, ends: of the clusters; left (rows,
    k): the candidates of every row that the rules left, -1 elsewhere; for Aggregated alone."""

    miner: Miner
    count: int
    sample: Sample | Aggregated
    score: str
    keep: bool
    empty: str
    seed: int
    cluster: Longs | None = None
    groups: Sequence[Longs] = ()
    left: NDArray[np.int32] | None = None

    def examples(self, judged: Judgement, counts: dict[str, int]) -> Iterator[Example]:
        """The window's rows with their new negatives. counts: what became of them is added to it."""
        pool = self.miner.pool
        begin = int(pool.positive_end[judged.start - 1]) if judged.start else 0
        picked = [self.chosen(judged, i) if judged.row[i] == LEFT else None for i in range(len(judged))]
        # Each document once, in the order in which it lies: a source of a thousand shards has few of them open.
        items = pool.items([p[0] for p in picked if p is not None])
        for i, chosen in enumerate(picked):
            if chosen is None:
                continue  # counted with the rules
            row = judged.start + i
            first = (int(pool.positive_end[row - 1]) if row else 0) - begin
            own = slice(first, int(pool.positive_end[row]) - begin)
            example = self._example(pool.rows[row], row, judged, own, chosen, items)
            empty = not len(chosen[0])
            counts["rows_without"] = counts.get("rows_without", 0) + empty
            counts["negatives"] = counts.get("negatives", 0) + len(chosen[0])
            if empty and self.empty == "drop":
                continue
            counts["rows_written"] = counts.get("rows_written", 0) + 1
            yield example

    def chosen(self, judged: Judgement, i: int) -> tuple[Longs, Floats, Floats]:
        """Documents, hardest first, their cosines and a judge's scores."""
        row = judged.start + i
        if isinstance(self.sample, Aggregated):
            return self._pooled(judged, i)
        columns = self.sample.pick(np.flatnonzero(judged.by[i] == LEFT), self.count, self.seed, row)
        return judged.index[i, columns], judged.score[i, columns], judged.rerank[i, columns]

    def _pooled(self, judged: Judgement, i: int) -> tuple[Longs, Floats, Floats]:
        row = judged.start + i
        assert self.cluster is not None and self.left is not None
        found = self.left[self.groups[int(self.cluster[row])]]
        documents, times = np.unique(found[found >= 0].astype(np.int64), return_counts=True)
        wrong = judged.index[i][(judged.by[i] != LEFT) & (judged.by[i] != SHORT)]
        barred = np.union1d(self.miner.pool.barred(row), wrong)
        chosen = pooled(documents, times, barred, self.count, self.seed, row)
        cosine = self.miner.cosines(np.full(len(chosen), row), chosen)
        order = np.argsort(-cosine, kind="stable")
        return chosen[order], cosine[order], np.full(len(chosen), np.nan, np.float32)

    def _example(
        self,
        example: Example,
        row: int,
        judged: Judgement,
        own: slice,
        found: tuple[Longs, Floats, Floats],
        items: Mapping[int, Item],
    ) -> Example:
        chosen, cosine, rerank = found
        pool, stays = self.miner.pool, judged.stays[own]
        positives = tuple(item for item, stay in zip(example.positives, stays, strict=True) if stay)
        gone = [item.id for item, stay in zip(example.positives, stays, strict=True) if not stay]
        old = pool.negatives(row) if self.keep else np.zeros(0, np.int64)
        fresh = ~np.isin(chosen, old)
        chosen, cosine, rerank = chosen[fresh], cosine[fresh], rerank[fresh]
        before = example.negatives if self.keep else ()
        negatives = (*before, *(items[d] for d in chosen.tolist()))
        scores = carried(example, positives, negatives)
        if self.score:
            known = self.miner.cosines(np.full(len(old), row), old)
            scores[self.score] = _plain([*judged.positive[own][stays], *known, *cosine])
        asked = [*judged.right[own][stays], *[np.nan] * len(old), *rerank]
        if negatives and not np.isnan(asked).any():
            scores["rerank"] = _plain(asked)
        known_ids = tuple(dict.fromkeys([*example.known, *gone]))
        return replace(example, positives=positives, negatives=negatives, known=known_ids, scores=scores)


def carried(example: Example, positives: Sequence[Item], negatives: Sequence[Item]) -> dict[str, tuple[float, ...]]:
    """The row's scores that speak of every document it has now; those that lack one are left out."""
    before = [item.id for item in (*example.positives, *example.negatives)]
    found: dict[str, tuple[float, ...]] = {}
    for name, values in example.scores.items():
        by_id = dict(zip(before, values, strict=False))
        if all(item.id in by_id for item in (*positives, *negatives)):
            found[name] = tuple(by_id[item.id] for item in (*positives, *negatives))
    return found


def counted(judged: Judgement, rules: Sequence[AnyRule]) -> dict[str, list[int]]:
    """Of a window, by rule: candidates and rows dropped; how cosines are spread. Lists add up over windows."""
    there = judged.by != SHORT
    kept = (judged.by == LEFT) & (judged.row == LEFT)[:, None]
    alive = there & (judged.row == LEFT)[:, None]
    return {
        "rows": [len(judged)],
        "candidates": [int(there.sum())],
        "candidates_left": [int(kept.sum())],
        "candidates_dropped": np.bincount(judged.by[there & (judged.by >= 0)], minlength=len(rules)).tolist(),
        "rows_dropped": np.bincount(judged.row[judged.row >= 0], minlength=len(rules)).tolist(),
        "rows_with_none_left": [int(((judged.row == LEFT) & ~kept.any(1)).sum())],
        "positives": [len(judged.positive)],
        "positives_dropped": [int((~judged.stays).sum())],
        "of_positives": histogram(judged.positive),
        "of_kept": histogram(judged.score[kept]),
        "of_dropped": histogram(judged.score[alive & ~kept]),
    }


def histogram(cosines: Floats) -> list[int]:
    places = np.clip(((cosines.astype(np.float64) + 1) / 2 * BINS).astype(np.int64), 0, BINS - 1)
    return [int(n) for n in np.bincount(places, minlength=BINS)]


def _plain(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(v), 6) for v in values)
