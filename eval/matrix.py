"""Vectors as a matrix that need not be in memory: rows by slice or by number, from a tensor or from a file on disk.

A file is mapped, and what was read of it is given back now and then: resident memory is flat in its length.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from ..data.types import DataError

_HELD = 32 << 20  # bytes of a file that stay resident before they are given back
_FAULT = 1 << 16  # bytes that the kernel maps around a page that is missing
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Matrix(Protocol):
    """(N, D) vectors on one device, of any float dtype. A Tensor is one; so is Mapped."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, at: Any, /) -> Tensor:
        """Rows of a slice, or of numbers (n,) int64. They may not be written."""
        ...


def rows_of(vectors: Matrix, at: Tensor) -> Tensor:
    """The rows of these numbers (n,) int64, where the vectors are."""
    if isinstance(vectors, Tensor):
        return vectors.index_select(0, at.to(vectors.device))  # a quarter of the price of brackets
    return vectors[at.cpu()]


class Mapped:
    """The tensor `name` (N, D) of a safetensors file, read where it is asked for. Raises DataError on another file."""

    def __init__(self, path: Path, name: str = "vectors") -> None:
        self.path, self.name = path, name
        with path.open("rb") as file:
            header, begin = _header(path, file)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch asks for what may be written
        told = header.get(name, {"dtype": "", "shape": ()})
        if len(told["shape"]) != 2 or told["dtype"] not in _DTYPES:
            there = {key: (one["dtype"], one["shape"]) for key, one in header.items() if key != "__metadata__"}
            raise DataError(f"{path}: expected floats {name!r} of shape (N, D); it holds {there}")
        first, last = told["data_offsets"]
        if begin + last > len(self._map):
            raise DataError(f"{path}: it has {len(self._map):,} bytes and should have {begin + last:,}; write it again")
        rows, width = told["shape"]
        self.shape, self.dtype = (int(rows), int(width)), _DTYPES[told["dtype"]]
        self._rows = torch.empty(self.shape, dtype=self.dtype)[:0] if not rows * width else self._whole(begin + first)
        self._touched = 0

    def _whole(self, begin: int) -> Tensor:
        count = self.shape[0] * self.shape[1]
        return torch.frombuffer(self._map, dtype=self.dtype, count=count, offset=begin).view(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any, /) -> Tensor:
        one = self.shape[1] * self.dtype.itemsize
        if isinstance(at, slice):
            touched = len(range(*at.indices(len(self)))) * one
        else:
            apart = int(at.max() - at.min()) + 1 if len(at) else 0
            touched = min(len(at) * (one + _FAULT), apart * one + _FAULT)
        self._touched += touched
        if self._touched > _HELD:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = touched
        return self._rows[at] if isinstance(at, slice) else self._rows.index_select(0, at)


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where their bytes begin."""
    try:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if 0 < length < 100 << 20 else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise DataError(f"{path}: this is no safetensors file")
    return header, 8 + length


def write(
    path: Path,
    blocks: Iterable[Tensor],
    shape: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    name: str = "vectors",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Blocks of rows, which together have `shape` (N, D), into one safetensors file, a block in memory at a time."""
    size = shape[0] * shape[1] * dtype.itemsize
    kind = next(key for key, value in _DTYPES.items() if value == dtype)
    told: dict[str, Any] = {name: {"dtype": kind, "shape": list(shape), "data_offsets": [0, size]}}
    text = json.dumps({"__metadata__": dict(metadata), **told} if metadata else told).encode()
    text += b" " * (-(8 + len(text)) % 64)  # rows begin where a vector register likes them
    aside = path.with_name(f".{path.name}.part")
    rows = 0
    with aside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            if block.ndim != 2 or block.shape[1] != shape[1]:
                raise ValueError(f"{path}: a block of shape {tuple(block.shape)}; expected (n, {shape[1]})")
            rows += len(block)
            file.write(block.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy().data)
    if rows != shape[0]:
        aside.unlink()
        raise ValueError(f"{path}: the blocks have {rows:,} rows; expected {shape[0]:,}")
    aside.replace(path)
    return path
