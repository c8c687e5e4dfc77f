"""Vectors of Items by id, in one safetensors file: what a teacher of any dimension thinks of them, mapped and not read.

`ids` (n, 2) int64 are the id pairs (data/relation.py), ascending; row i of `vectors` (n, D) float16 or float32 is of
ids[i]. An Item on the query's side and as a document may differ, so the Embedded step (train/vectors.py) writes two.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .types import DataError

QUERY, DOCUMENT = "query.safetensors", "document.safetensors"
Dtype = Literal["float16", "float32"]
_TYPES = {"F16": "<f2", "F32": "<f4", "I64": "<i8"}
_NAMES = {"float16": "F16", "float32": "F32"}
_LONGEST = 1 << 26  # bytes of a head that is still believed


@dataclass(frozen=True, eq=False)
class Vectors:
    """A table of vectors that is open. about: what was written of it, "teacher" (its digest) among it."""

    path: Path
    ids: NDArray[np.int64]
    matrix: NDArray[Any]
    about: Mapping[str, str]

    @staticmethod
    def open(path: Path) -> Vectors:
        """Raises DataError where the file is missing, cut short, or of another form."""
        head, start = _head(path)
        try:
            about = dict(head.get("__metadata__", {}))
            ids, matrix = (_mapped(path, head[name], start) for name in ("ids", "vectors"))
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{path}: is no table of vectors ({error}), or was cut short; make it again") from error
        if ids.dtype != np.int64 or ids.shape != (len(matrix), 2) or matrix.ndim != 2:
            given = f"ids {ids.dtype} {ids.shape}, vectors {matrix.dtype} {matrix.shape}"
            raise DataError(f"{path}: {given}; expected ids int64 (n, 2), vectors (n, D)")
        return Vectors(path, ids, matrix, about)

    @property
    def dim(self) -> int:
        return int(self.matrix.shape[1])

    def __len__(self) -> int:
        return len(self.ids)

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """ids (m, 2) -> the row of each, (m,), -1 where it has none."""
        high = self.ids[:, 0]
        place = np.searchsorted(high, ids[:, 0], side="left")
        found = np.full(len(ids), -1, np.int64)
        left = np.arange(len(ids))
        while len(left):  # a second turn only for ids that share their first half
            at = place[left]
            left, at = left[at < len(self.ids)], at[at < len(self.ids)]
            there = self.ids[at]
            same = there[:, 0] == ids[left, 0]
            equal = same & (there[:, 1] == ids[left, 1])
            found[left[equal]] = at[equal]
            left = left[same & ~equal]
            place[left] += 1
        return found

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """(m, D) float32 of unit length. Raises DataError for one that is not finite, or zero."""
        out = np.asarray(self.matrix[places], np.float32)
        length = np.sqrt(np.einsum("ij,ij->i", out, out, dtype=np.float64))
        if bad := np.flatnonzero(~(np.isfinite(length) & (length > 0))).tolist():
            row = int(places[bad[0]])
            raise DataError(f"{self.path}: row {row} is a vector of length {length[bad[0]]}; make the table again")
        out /= length[:, None].astype(np.float32)
        return out


def ordered(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order that makes ids (n, 2) ascending, as a table wants them."""
    return np.lexsort((ids[:, 1], ids[:, 0])).astype(np.int64)


def write(
    path: Path,
    ids: NDArray[np.int64],
    windows: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    dim: int,
    about: Mapping[str, str],
    dtype: Dtype = "float16",
) -> Path:
    """A table of ids (n, 2), each once and ascending. windows: (rows of the table, their vectors (m, dim)), every row
    in one of them, in any order: one at a time is in memory. Written aside and renamed."""
    high, low = ids[:, 0], ids[:, 1]
    above = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    if not above.all():
        raise ValueError(f"{path}: ids are not ascending, or one stands twice; order them, see vectors.ordered")
    with _aside(path, len(ids), dim, dtype, about) as (id_map, matrix):
        id_map[:] = ids
        filled = np.zeros(len(ids), bool)
        for rows, vectors in windows:
            if vectors.shape != (len(rows), dim):
                raise DataError(f"{path}: vectors of shape {vectors.shape}; expected ({len(rows)}, {dim})")
            if bad := np.flatnonzero(~np.isfinite(vectors).all(1)).tolist():
                raise DataError(f"{path}: vector {int(rows[bad[0]])} is not finite; look at the teacher, or its dtype")
            matrix[rows] = vectors
            filled[rows] = True
        if not filled.all():
            raise DataError(f"{path}: {int((~filled).sum()):,} of {len(ids):,} ids were given no vector")
    return path


@contextmanager
def _aside(path: Path, count: int, dim: int, dtype: Dtype, about: Mapping[str, str]) -> Iterator[tuple[Any, Any]]:
    """Both arrays of the file to be, mapped; it is there once all went well."""
    width = np.dtype(dtype).itemsize
    ends = (16 * count, 16 * count + width * count * dim)
    head: dict[str, Any] = {
        "__metadata__": dict(about),
        "ids": {"dtype": "I64", "shape": [count, 2], "data_offsets": [0, ends[0]]},
        "vectors": {"dtype": _NAMES[dtype], "shape": [count, dim], "data_offsets": list(ends)},
    }
    raw = json.dumps(head, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + ends[1])
        maps = [_mapped(aside, head[name], 8 + len(raw), "r+") for name in ("ids", "vectors")]
        yield maps[0], maps[1]
        for array in maps:
            if isinstance(array, np.memmap):
                array.flush()
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _head(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size >= _LONGEST:
                raise ValueError("its head is too long")
            return dict(json.loads(file.read(size))), 8 + size
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such table; name an Embedded step, or the folder that one has made") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); was it cut short? Make it again") from error


def _mapped(path: Path, told: Mapping[str, Any], start: int, mode: Literal["r", "r+"] = "r") -> NDArray[Any]:
    shape = tuple(int(n) for n in told["shape"])
    kind = np.dtype(_TYPES[told["dtype"]])
    if not math.prod(shape):  # nothing can be mapped
        return np.zeros(shape, kind)
    return np.memmap(path, kind, mode, start + int(told["data_offsets"][0]), shape)
