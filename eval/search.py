"""Exact search: the top k candidates of every query and the rank of every right answer, tile by tile, never Q x N.

Equal scores are ordered by candidate order: of two equally good candidates, the earlier one in the pool comes first.
Products are taken in float64 and rounded to float32, so that equal candidates score equal wherever a tile puts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

ROWS, COLUMNS = 1024, 4096  # of a tile: 32 MiB of float64 scores
_LAST = torch.iinfo(torch.int64).min

Hidden = Callable[[slice, slice], Tensor]  # (queries, docs) of a tile -> bool (q, n): what these queries do not rank


@dataclass(frozen=True)
class Found:
    """top (Q, k) candidate indices, best first, -1 beyond a small pool; scores (Q, k) float32, NaN there;
    right_ranks: of each query, the rank (from 1) of each of its right answers, in the order given."""

    top: np.ndarray
    scores: np.ndarray
    right_ranks: tuple[tuple[int, ...], ...]


def search(
    query: Tensor,
    docs: Tensor,
    k: int,
    right: Sequence[Sequence[int]] = (),
    own: Sequence[int] = (),
    *,
    hidden: Hidden | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Found:
    """Every query (Q, D) ranks all docs (N, D). `device` computes, a tile at a time (default: where the docs are).

    right: of each query, the candidate indices whose rank is wanted. own: of each query, one candidate that it does not
    rank (its own Item), or -1. hidden: what more the queries do not rank, asked for each tile. Raises ValueError on
    vectors that are not finite or do not fit each other.
    """
    _check(query, docs)
    right, own = right or [()] * len(query), own or [-1] * len(query)
    tops, scores, ranks = [], [], []
    for start in range(0, len(query), ROWS):
        rows = slice(start, start + ROWS)
        vectors = query[rows].to(device or docs.device, dtype)
        gone = None if hidden is None else partial(hidden, slice(start, min(start + ROWS, len(query))))
        key, positions = _tile_row(vectors, docs, k, right[rows], own[rows], gone)
        value, index = _unpack(key.cpu())
        tops.append(index)
        scores.append(value)
        ranks += _agreed(positions, index, right[rows])
    width = min(k, len(docs))
    return Found(
        np.concatenate(tops) if tops else np.empty((0, width), np.int64),
        np.concatenate(scores) if scores else np.empty((0, width), np.float32),
        tuple(ranks),
    )


def search_local(
    query: Tensor, docs: Tensor, k: int, pools: Sequence[Sequence[int]], right: Sequence[Sequence[int]] = ()
) -> Found:
    """Every query (Q, D) ranks its own pool of indices into docs (N, D). `right` holds indices into docs as well."""
    _check(query, docs)
    right = right or [()] * len(query)
    width = min(k, max(map(len, pools), default=0))
    top = np.full((len(query), width), -1, np.int64)
    scores = np.full((len(query), width), np.nan, np.float32)
    ranks: list[tuple[int, ...]] = []
    for q, (pool, answers) in enumerate(zip(pools, right, strict=True)):
        rows = torch.as_tensor(pool, dtype=torch.int64, device=docs.device)
        score = (docs[rows].double() @ query[q].to(docs.device).double()).float().cpu()
        order = torch.argsort(score, descending=True, stable=True).numpy()
        ordered = np.asarray(pool, np.int64)[order]
        top[q, : len(order)] = ordered[:width]
        scores[q, : len(order)] = score.numpy()[order][:width]
        place = {int(c): i for i, c in enumerate(ordered, 1)}
        ranks.append(tuple(place[a] for a in answers))
    return Found(top, scores, tuple(ranks))


def _check(query: Tensor, docs: Tensor) -> None:
    if query.ndim != 2 or docs.ndim != 2 or query.shape[1] != docs.shape[1]:
        raise ValueError(f"query {tuple(query.shape)} and docs {tuple(docs.shape)} must be (Q, D) and (N, D) of one D")
    for name, vectors in (("query", query), ("docs", docs)):
        bad = (~torch.isfinite(vectors)).any(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"{name}: {int(bad.sum())} of {len(vectors)} vectors hold NaN or infinity, the first is row {first}; "
                "a score of them would mean nothing: look at the model's weights or its dtype"
            )


def _tile_row(
    query: Tensor,
    docs: Tensor,
    k: int,
    right: Sequence[Sequence[int]],
    own: Sequence[int],
    gone: Callable[[slice], Tensor] | None,
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """One row of tiles: the best k keys (q, k), and each right answer's rank by counting what stands before it."""
    device, dtype = query.device, query.dtype
    owner = torch.tensor([q for q, answers in enumerate(right) for _ in answers], dtype=torch.int64, device=device)
    answer = torch.tensor([a for answers in right for a in answers], dtype=torch.int64, device=device)
    mine = torch.as_tensor(own, dtype=torch.int64, device=device)
    pairs = zip(owner.split(ROWS), answer.split(ROWS), strict=True)
    score = torch.cat([(query[o] * docs[a.to(docs.device)].to(device, dtype)).sum(1) for o, a in pairs])
    bar = _pack(score.float(), answer)
    before = torch.zeros_like(answer)
    best = torch.empty((len(query), 0), dtype=torch.int64, device=device)
    for start in range(0, len(docs), COLUMNS):
        tile = (query @ docs[start : start + COLUMNS].to(device, dtype).T).float()
        columns = torch.arange(start, start + tile.shape[1], device=device)
        key = _pack(tile, columns)
        itself = ((mine >= start) & (mine < start + tile.shape[1])).nonzero()[:, 0]
        key[itself, mine[itself] - start] = _LAST
        if gone is not None:
            key[gone(slice(start, start + tile.shape[1])).to(device)] = _LAST
        for some in torch.arange(len(answer), device=device).split(ROWS):
            earlier = key[owner[some]] > bar[some, None]
            same = columns == answer[some, None]  # an answer does not stand before itself, whatever its rounding
            before[some] += (earlier & ~same).sum(1)
        best = torch.cat([best, key.topk(min(k, key.shape[1]), dim=1).values], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    flat = (before + 1).tolist()
    ends = np.cumsum([len(answers) for answers in right])
    return best, [tuple(flat[end - len(answers) : end]) for end, answers in zip(ends, right, strict=True)]


def _pack(score: Tensor, index: Tensor) -> Tensor:
    """float32 score and index < 2^31 in one int64 that sorts by score, then by earlier index."""
    bits = (score + 0.0).view(torch.int32)  # adding zero makes -0.0 and 0.0 one
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(torch.int64)
    return (ordered << 32) + (0x7FFFFFFF - index)


def _unpack(key: Tensor) -> tuple[np.ndarray, np.ndarray]:
    ordered = (key >> 32).to(torch.int32)
    score = torch.where(ordered >= 0, ordered, ordered ^ 0x7FFFFFFF).view(torch.float32)
    index = 0x7FFFFFFF - (key & 0xFFFFFFFF)
    gone = key == _LAST
    return score.masked_fill(gone, torch.nan).numpy(), index.masked_fill(gone, -1).numpy()


def _agreed(ranks: list[tuple[int, ...]], top: np.ndarray, right: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Ranks that never contradict the top list, where an answer's own score was rounded otherwise in its tile."""
    agreed = []
    for row, counted, answers in zip(top, ranks, right, strict=True):
        place = {int(c): i for i, c in enumerate(row, 1)}
        agreed.append(tuple(place.get(a, max(r, len(row) + 1)) for a, r in zip(answers, counted, strict=True)))
    return agreed
