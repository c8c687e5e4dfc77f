"""The top k of every query among more documents than memory holds: faiss's IVF-PQ, its best candidates scored exactly.

Scores are exact, the list is not: `recall` says how much of the true one was found. Needs pip install "omni2vec[mine]".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.counter import choose
from ..data.types import DataError
from .matrix import Matrix
from .nearest import Hidden, exact, ranked

BLOCK = 8192  # documents added, or rows of a sample read, at a time
QUERIES = 1024  # searched at a time
_HIDDEN = 1 << 16  # documents of which a mask is asked at a time
_SAVES = 8  # of an index while it grows
_UNIT = 1e-2  # from 1, of a length that is taken for 1: vectors in half precision
_PER_LIST = 64  # rows of the sample for each list; faiss asks for 39 or more


@dataclass(frozen=True)
class Approximate:
    """How an inverted file of product-quantised residuals is built and asked (IVF-PQ, Jegou et al., TPAMI 2011; codes
    of four bits, arXiv:1812.09162).

    lists: clusters of the documents; 0: the power of two at or below 4 sqrt(N). code_bytes: of a document in memory,
    twice of which divides the dimension; 0: a quarter of the dimension, so that half a byte says two components.
    probes: lists that a query looks into. train_rows: documents that clusters and codes are learned from; 0: 64 a list.
    rescore: as many times k candidates are scored exactly, from the vectors themselves. One seed and one number of
    threads give one index; another number of threads may round the centres otherwise.
    """

    lists: int = 0
    code_bytes: int = 0
    probes: int = 32
    train_rows: int = 0
    rescore: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("lists", 0), ("code_bytes", 0), ("probes", 1), ("train_rows", 0), ("rescore", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"Approximate: {field}={getattr(self, field)}; expected {least} or more")

    def resolved(self, count: int, dim: int) -> Approximate:
        """With every 0 replaced, for N = count documents. Raises DataError where they cannot be indexed so."""
        lists = self.lists or 1 << max(round(4 * count**0.5).bit_length() - 1, 0)
        lists = max(min(lists, count // 39), 1) if not self.lists else lists
        fit = [size for size in range(1, dim // 2 + 1) if dim % (2 * size) == 0]
        code = self.code_bytes or max((size for size in fit if size <= dim // 4), default=0)
        if code not in fit:
            raise DataError(
                f"Approximate: code_bytes={code} for vectors of {dim} components, of which each half byte must say as "
                f"many; choose one of {fit}, or search with Exact()"
            )
        rows = min(self.train_rows or _PER_LIST * max(lists, 64), count)
        if rows < max(lists, 64):
            raise DataError(
                f"Approximate: {rows:,} of {count:,} documents to learn {lists:,} lists from; raise train_rows or "
                "lower lists, or search so few documents with Exact()"
            )
        return Approximate(lists, code, min(self.probes, lists), rows, self.rescore, self.seed)


@dataclass(frozen=True)
class Index:
    """An index of `docs` and how it is asked."""

    index: Any
    docs: Matrix
    how: Approximate

    def nearest(self, query: Tensor, k: int, hidden: Hidden | None = None, first: int = 0) -> tuple[Tensor, Tensor]:
        """Of queries (q, D): (index (q, k) int64, scores (q, k) float32), best first, -1 and NaN beyond what was found.
        hidden: as `nearest` asks it, of queries from number `first` on."""
        index = torch.full((len(query), k), -1, dtype=torch.int64)
        scores = torch.full((len(query), k), torch.nan)
        wanted = min(k * self.how.rescore, len(self.docs))
        for start in range(0, len(query), QUERIES):
            rows = query[start : start + QUERIES].cpu().float().contiguous()
            ids = torch.from_numpy(self.index.search(rows.numpy(), wanted)[1]).sort(dim=1).values
            if hidden is not None:
                some = slice(first + start, first + start + len(rows))
                ids = torch.where(_gone(ids, hidden, some, len(self.docs)), -1, ids)
            found, score = ranked(exact(rows, self.docs, ids), ids, k)
            index[start : start + len(rows), : found.shape[1]] = found
            scores[start : start + len(rows), : found.shape[1]] = score
        return index, scores


def _gone(ids: Tensor, hidden: Hidden, rows: slice, count: int) -> Tensor:
    """(q, w) bool: which candidates ids (q, w) their queries do not rank."""
    out = torch.zeros_like(ids, dtype=torch.bool)
    for start in range(0, count, _HIDDEN):
        tile = slice(start, min(start + _HIDDEN, count))
        mask = hidden(rows, tile)
        if mask is None:
            continue
        row, at = ((ids >= tile.start) & (ids < tile.stop)).nonzero(as_tuple=True)
        column = ids[row, at] - start
        mask = mask.cpu()
        if mask.dtype == torch.bool:
            out[row, at] = mask[row, column]
        else:
            width = tile.stop - start
            out[row, at] = torch.isin(row * width + column, mask[:, 0] * width + mask[:, 1])
    return out


def build(
    docs: Matrix, how: Approximate, path: Path, digest: str = "", advance: Callable[[int], None] = lambda done: None
) -> Index:
    """The index of docs (N, D), kept at `path`, and taken from there where it is that of `digest` and `how`; half
    built, it goes on. advance: told of documents as they are added."""
    settled = how.resolved(len(docs), docs.shape[1])
    facts = _facts(docs, settled, digest)
    index = _kept(path, facts)
    if index is None:
        path.unlink(missing_ok=True)
        index = _trained(docs, settled)
        _keep(index, path)
        _told(path).write_text(json.dumps(facts))  # after the index: one without its facts is not used
    advance(index.ntotal)
    due = max(len(docs) // _SAVES, 1 << 20)
    saved = index.ntotal
    while index.ntotal < len(docs):
        block = docs[index.ntotal : index.ntotal + BLOCK]
        index.add(block.cpu().float().contiguous().numpy())
        advance(len(block))
        if index.ntotal - saved >= due or index.ntotal == len(docs):
            _keep(index, path)
            saved = index.ntotal
    index.nprobe = settled.probes
    return Index(index, docs, settled)


def opened(docs: Matrix, how: Approximate, path: Path, digest: str = "") -> Index | None:
    """The index that `build` has left at `path`; None where it is not whole, or of something else."""
    settled = how.resolved(len(docs), docs.shape[1])
    index = _kept(path, _facts(docs, settled, digest))
    if index is None or index.ntotal != len(docs):
        return None
    index.nprobe = settled.probes
    return Index(index, docs, settled)


def _facts(docs: Matrix, how: Approximate, digest: str) -> dict[str, Any]:
    """What shapes an index."""
    facts = {"digest": digest, "shape": list(docs.shape), "faiss": _faiss().__version__, **asdict(how)}
    return {key: value for key, value in facts.items() if key not in ("probes", "rescore")}


def _trained(docs: Matrix, how: Approximate) -> Any:
    faiss = _faiss()
    chosen = torch.tensor(choose(len(docs), how.train_rows, how.seed, "index"))
    sample = torch.cat([docs[rows].cpu().float() for rows in chosen.split(BLOCK)])
    # Codes of four bits: sixteen centres a part are learned in a thirtieth of the time of 256, and sums are looked up
    # in registers; at equal bytes the recall was the same. Distances rank unit vectors as products do, and codes keep
    # them better: a code is shorter than its vector, by more or less, which a product takes for less likeness.
    unit = bool(((torch.linalg.vector_norm(sample, dim=1) - 1).abs() < _UNIT).all())
    metric = faiss.METRIC_L2 if unit else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(docs.shape[1], f"IVF{how.lists},PQ{2 * how.code_bytes}x4fsr", metric)
    index.cp.seed = index.pq.cp.seed = how.seed + 1234  # faiss's own is 1234
    index.cp.spherical = unit
    index.cp.max_points_per_centroid = -(-how.train_rows // how.lists)
    index.train(sample.numpy())
    return index


def _told(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _kept(path: Path, facts: dict[str, Any]) -> Any | None:
    """The index at `path`, if it is of these facts and whole."""
    try:
        return _faiss().read_index(str(path)) if json.loads(_told(path).read_text()) == facts else None
    except (OSError, ValueError, RuntimeError):  # faiss's errors are RuntimeErrors
        return None


def _keep(index: Any, path: Path) -> None:
    aside = path.with_name(f".{path.name}.part")
    _faiss().write_index(index, str(aside))
    aside.replace(path)


def recall(found: tuple[Tensor, Tensor], true: tuple[Tensor, Tensor]) -> float:
    """Share of the true top k that was found; (index, scores) each. Another document of the last one's score counts."""
    there = (true[0] >= 0).sum(1)
    last = true[1].gather(1, (there - 1).clamp(min=0)[:, None])
    right = ((found[0] >= 0) & (found[1] >= last)).sum(1)
    asked = there > 0
    return float((right[asked] / there[asked]).double().mean()) if asked.any() else 1.0


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError('an approximate search needs faiss: pip install "omni2vec[mine]"') from error
    return faiss
