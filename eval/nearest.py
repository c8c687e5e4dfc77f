"""The top k of every query, exactly, at little more than the price of the matrix product; documents may be on disk.

Order is that of float64 dot products rounded to float32, equal scores in the order of the documents: the same to the
bit for any tiles, ranks, threads and devices. Products of tiles are taken in float32 and only choose who is looked at
again; what their rounding could hide is kept, by a bound that holds for any order of summation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .matrix import Matrix, rows_of

ROWS, COLUMNS = 1024, 1024  # of a tile: 4 MiB of float32 scores stay in a core's cache
DEVICE_ROWS, DEVICE_COLUMNS = 8192, 16384  # on a GPU: 512 MiB
_DENSE = torch.contiguous_format
_FRESH = 0.5  # candidates a place of the list, before bars rise
_ROUND = 2.0**-24  # half a unit in the last place of float32, relative
_LEAST = 2.0**-149  # the smallest float32
_PIECE = 1 << 17  # numbers that are rescored at a time: 1 MiB of float64

Hidden = Callable[[slice, slice], Tensor | None]


@dataclass(frozen=True)
class Exact:
    """Every query is compared with every document. rows, columns: of a tile; by default what suits the device."""

    rows: int | None = None
    columns: int | None = None


def nearest(
    query: Matrix,
    docs: Matrix,
    k: int,
    *,
    hidden: Hidden | None = None,
    device: torch.device | str | None = None,
    rows: int | None = None,
    columns: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Of queries (Q, D) among docs (N, D), any float dtype: (index (Q, k) int64, scores (Q, k) float32), best first;
    -1 and NaN beyond a short list. On the host.

    hidden(queries, docs): of a tile, what these queries do not rank: bool (q, n), or (H, 2) int64 pairs of a row and a
    column of the tile, or None. device: computes, a tile at a time (default: where the queries are). rows, columns: of
    a tile, for memory and speed alone. Holds a tile and Q x k, whatever N. Raises ValueError on vectors that are not
    finite or do not fit each other.
    """
    if len(query.shape) != 2 or len(docs.shape) != 2 or query.shape[1] != docs.shape[1] or k < 1:
        raise ValueError(
            f"query {tuple(query.shape)} and docs {tuple(docs.shape)} with k={k}; expected (Q, D) and (N, D) of one D, "
            "and k of 1 or more"
        )
    if len(docs) >= 1 << 31:
        raise ValueError(f"{len(docs):,} docs; expected fewer than 2^31: search them in parts")
    at = torch.device(device) if device is not None else query[:0].device
    large = at.type == "cuda"
    rows = rows or (DEVICE_ROWS if large else ROWS)
    columns = columns or max(DEVICE_COLUMNS if large else COLUMNS, 2 * k)
    longest = _longest("docs", docs, at)
    if longest * _longest("query", query, at) > 1e38:
        raise ValueError(f"docs are up to {longest:.1e} long: their scores leave float32; scale the vectors")
    index = torch.full((len(query), k), -1, dtype=torch.int64)
    scores = torch.full((len(query), k), torch.nan)
    with _full_precision():
        for start in range(0, len(query), rows):
            some = slice(start, min(start + rows, len(query)))
            gone = None if hidden is None else partial(hidden, some)
            found = _block(query[some].to(at, torch.float32), docs, k, longest, gone, columns)
            for out, values in zip((index, scores), found, strict=True):
                out[some, : values.shape[1]] = values.cpu()
    return index, scores


@contextmanager
def _full_precision() -> Iterator[None]:
    """Float32 products in float32: a lower setting would break the bound on their rounding."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _longest(name: str, vectors: Matrix, device: torch.device, step: int = 8192) -> float:
    """The largest norm. Raises ValueError where a vector is not finite."""
    most = torch.zeros((), device=device)
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step].to(device, torch.float32)
        most = torch.maximum(most, torch.linalg.vector_norm(block, dim=1).max())  # NaN stays
        if (start // step) % 64 == 63 or start + step >= len(vectors):
            _finite(name, vectors, most, start + step)
    return float(most)


def _finite(name: str, vectors: Matrix, most: Tensor, end: int) -> None:
    if torch.isfinite(most):
        return
    for start in range(0, end, 8192):
        bad = (~torch.isfinite(vectors[start : start + 8192])).any(1).nonzero()
        if len(bad):
            raise ValueError(
                f"{name}: row {start + int(bad[0])} of {len(vectors)} holds NaN or infinity; a score of it would mean "
                "nothing: look at the model's weights or its dtype"
            )


def _block(
    query: Tensor,
    docs: Matrix,
    k: int,
    longest: float,
    gone: Callable[[slice], Tensor | None] | None,
    columns: int,
) -> tuple[Tensor, Tensor]:
    """One row of tiles: queries (q, D) float32 and all docs -> index, scores (q, min(k, N))."""
    count = len(query)
    # |float32 dot - true dot| <= D u |q| |d| to first order, any order of summation; the rest is for what is rounded
    # after it, and for what falls under the smallest float. Twice: the k-th best may be too high, a candidate too low.
    slack = 2 * (query.shape[1] + 8) * (_ROUND * longest * torch.linalg.vector_norm(query, dim=1) + _LEAST)
    best = Shortlist(query, docs, k, slack, columns)
    buffer = torch.empty(count * columns, device=query.device)
    for start in range(0, len(docs), columns):
        end = min(start + columns, len(docs))
        tile = buffer[: count * (end - start)].view(count, end - start)
        torch.mm(query, docs[start:end].to(query.device, torch.float32).T, out=tile)
        if gone is not None and (mask := gone(slice(start, end))) is not None:
            mask = mask.to(query.device)
            if mask.dtype == torch.bool:
                tile.masked_fill_(mask, -torch.inf)
            else:
                tile[mask[:, 0], mask[:, 1]] = -torch.inf
        best.see(tile, start)
    return best.result()


class Shortlist:
    """Of each query (q, D), the documents that may be among its best k: (q, width), in their order, from the left.

    A score that is under its query's bar is compared once and not looked at again. The bar, a little under the k-th
    best so far, rises whenever enough new candidates have come in.
    """

    def __init__(self, query: Tensor, docs: Matrix, k: int, slack: Tensor, columns: int) -> None:
        self.query, self.docs, self.k, self.slack = query, docs, min(k, len(docs)), slack
        self.limit = 2 * k + 64  # of a row, once it is settled
        shape, device = (len(query), self.limit + columns), query.device
        self.scores = torch.full(shape, -torch.inf, device=device)
        self.ids = torch.zeros(shape, dtype=torch.int32, device=device)
        self.filled = torch.zeros(len(query), dtype=torch.int64, device=device)
        self.bar = torch.full((len(query),), -torch.inf, device=device)
        self.mask = torch.empty(shape[0] * shape[1], dtype=torch.bool, device=device)
        self.fresh, self.widest = 0, 0

    def see(self, tile: Tensor, start: int) -> None:
        """Scores (q, n) of the documents from `start`."""
        if start == 0 and tile.shape[1] >= self.k:
            self.bar = kth(tile, self.k) - self.slack
        at = over(tile, self.bar[:, None], self.mask)
        if len(at):
            row = at // tile.shape[1]
            self._add(row, (at - row * tile.shape[1] + start).to(torch.int32), tile.view(-1).index_select(0, at))
        if self.fresh > _FRESH * len(self.query) * self.k:
            self._raise()

    def _raise(self) -> None:
        """The bars, by what has come in."""
        if self.widest >= max(self.k, 1):
            self.bar = torch.maximum(self.bar, kth(self.scores[:, : self.widest], self.k) - self.slack)
        self.fresh = 0

    def _add(self, row: Tensor, ids: Tensor, scores: Tensor) -> None:
        """Candidates in order of their rows, each row's in order of the documents."""
        counts = torch.bincount(row, minlength=len(self.query))
        most = int(counts.max())
        if self.widest + most > self.scores.shape[1]:
            self._settle()
        begin = self.filled - (counts.cumsum(0) - counts)
        # Of one axis throughout: torch picks and puts by two, or by brackets, at several times the price.
        at = begin.index_select(0, row) + torch.arange(len(row), device=row.device) + row * self.scores.shape[1]
        self.scores.view(-1).scatter_(0, at, scores)
        self.ids.view(-1).scatter_(0, at, ids)
        self.filled += counts
        self.widest = int(self.filled.max())
        self.fresh += len(row)

    def _settle(self) -> None:
        """Drops what is under the bars."""
        self._raise()
        scores, ids = (t[:, : self.widest].clone(memory_format=_DENSE) for t in (self.scores, self.ids))
        at = over(scores, self.bar[:, None], self.mask)
        row = at // max(self.widest, 1)
        self.scores[:, : self.widest] = -torch.inf
        self.filled.zero_()
        self.widest = 0
        self._add(row, ids.view(-1).index_select(0, at), scores.view(-1).index_select(0, at))
        self._thin()

    def _thin(self) -> None:
        """Rows that too many equal scores have filled are ranked exactly, and keep k."""
        for r in (self.filled > self.limit).nonzero()[:, 0].tolist():
            n = int(self.filled[r])
            ids = self.ids[r, :n]
            score = exact(self.query[r : r + 1], self.docs, ids[None].long())[0]
            first = score.argsort(descending=True, stable=True)[: self.k].sort().values
            self.scores[r, self.k : n] = -torch.inf
            self.scores[r, : self.k], self.ids[r, : self.k] = score[first], ids[first]
            self.filled[r] = self.k
        self.widest = int(self.filled.max())

    def result(self) -> tuple[Tensor, Tensor]:
        self._settle()
        taken = torch.arange(self.widest, device=self.filled.device) < self.filled[:, None]
        ids = self.ids[:, : self.widest].long().masked_fill(~taken, -1)
        return ranked(exact(self.query, self.docs, ids), ids, self.k)


def over(scores: Tensor, bar: Tensor, mask: Tensor) -> Tensor:
    """Where scores (q, n) are over the bar (q, 1), ascending, of the flat matrix. mask: a buffer of as many bools.

    On the host by numpy, which compares twice as fast as torch and goes over a sparse mask ten times as fast."""
    mask = mask[: scores.numel()].view(scores.shape)
    if scores.device.type != "cpu":
        return torch.gt(scores, bar, out=mask).view(-1).nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(np.greater(scores.numpy(), bar.numpy(), out=mask.numpy())))


def kth(scores: Tensor, k: int) -> Tensor:
    """The k-th largest of each row (q,). On the host by numpy's quickselect, ten times as fast as torch's."""
    if scores.device.type != "cpu":
        return scores.topk(k, dim=1).values[:, -1]
    at = scores.shape[1] - k
    return torch.from_numpy(np.partition(scores.numpy(), at, axis=1)[:, at].copy())


def ranked(scores: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(index, scores) (q, at most k), best first, of candidates (q, w) that stand in the order of the documents; -1
    is none."""
    order = scores.masked_fill(ids < 0, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :k]
    return ids.gather(1, order), scores.gather(1, order)


def exact(query: Tensor, docs: Matrix, ids: Tensor) -> Tensor:
    """Scores (q, w) float32 of queries (q, D) with the documents ids (q, w), -1 for none (NaN): float64 products,
    summed by halves, so that a pair's score depends on nothing but the pair."""
    out = torch.full(ids.shape, torch.nan, device=query.device)
    row, at = (ids >= 0).nonzero(as_tuple=True)
    order = ids[row, at].argsort()  # documents are read in their order: a file's pages once, memory's as they come
    row, at = row[order], at[order]
    step = max(_PIECE // query.shape[1], 1)
    for r, a in zip(row.split(step), at.split(step), strict=True):
        them = rows_of(docs, ids[r, a]).to(query.device, torch.float32).double()
        out[r, a] = _halves(them.mul_(query.index_select(0, r))).float()
    return out


def _halves(terms: Tensor) -> Tensor:
    """The sum over the last axis, by additions of halves alone."""
    while (width := terms.shape[1]) > 1:
        half = (width + 1) // 2
        terms[:, : width - half] += terms[:, half:]
        terms = terms[:, :half]
    return terms[:, 0]
