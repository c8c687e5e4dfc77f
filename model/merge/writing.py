"""Safetensors written a block at a time: the header first, since every size is known, then the elements in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from ...data.types import DataError
from .weights import CODES, INDEX


@dataclass(frozen=True)
class Wanted:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


class Writer(AbstractContextManager["Writer"]):
    """One file. Tensors must come in the order of `tensors`, their elements in order; `done` holds it to that."""

    def __init__(self, file: Path, tensors: Sequence[Wanted]) -> None:
        self.file = file
        entries, at = {}, 0
        for t in tensors:
            place = [at, at + t.nbytes]
            entries[t.name] = {"dtype": CODES[t.dtype], "shape": list(t.shape), "data_offsets": place}
            at += t.nbytes
        text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._stream: BinaryIO = file.open("wb")
        self._stream.write(len(text).to_bytes(8, "little") + text)
        self._end = 8 + len(text) + at

    def write(self, values: Tensor) -> None:
        """The next elements, 1-D, in the dtype of their tensor."""
        if values.numel():
            self._stream.write(values.contiguous().view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        length = self._stream.tell()
        self._stream.close()
        if kind is None and length != self._end:
            raise DataError(f"{self.file}: {length:,} bytes were written of {self._end:,}; is the disk full?")


def sharded(tensors: Sequence[Wanted], most: int) -> list[list[Wanted]]:
    """Tensors by file of `most` bytes; in a file the widest dtypes first, so that every element stays aligned."""
    files: list[list[Wanted]] = [[]]
    size = 0
    for t in tensors:
        if files[-1] and size + t.nbytes > most:
            files.append([])
            size = 0
        files[-1].append(t)
        size += t.nbytes
    return [sorted(file, key=lambda t: -t.dtype.itemsize) for file in files]


def named(count: int) -> Iterator[str]:
    """The names of a model's files, as transformers has them."""
    if count == 1:
        yield "model.safetensors"
    else:
        yield from (f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1))


def write_index(folder: Path, files: Sequence[Sequence[Wanted]]) -> None:
    """Which file has which tensor, where there are several."""
    if len(files) == 1:
        return
    where = {t.name: name for name, file in zip(named(len(files)), files, strict=True) for t in file}
    total = sum(t.nbytes for file in files for t in file)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
