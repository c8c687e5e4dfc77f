"""The tensors of a model's folder, read by ranges of their elements: nothing is ever held whole.

safetensors keeps a tensor's elements in one run of bytes, so any range of them is one seek, and a row of any length can
be cut. Names are those of the files; a folder's files are told apart by what they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...data.types import DataError
from ..checkpoint import WEIGHTS

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
STOCK = ""  # the group of the stock model's weights


@dataclass(frozen=True, order=True)
class Key:
    """group: "" for the stock model's weights, else the file that holds them (`omni2vec.safetensors`)."""

    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.group})" if self.group else self.name


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies. start: its first byte in the file."""

    file: Path
    code: str
    shape: tuple[int, ...]
    start: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.code]

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def floating(self) -> bool:
        return self.dtype.is_floating_point


class Tensors(Protocol):
    """What is merged: entries by key, and their elements. dtype and shape are what counts of an entry; an adapter's
    elements come from several files."""

    @property
    def label(self) -> str: ...

    @property
    def entries(self) -> Mapping[Key, Entry]: ...

    def read(self, key: Key, start: int, stop: int) -> Tensor:
        """Elements [start, stop), 1-D: float32, or float64 where they are; integers and bools as they are."""
        ...


@dataclass(frozen=True)
class Folder:
    """The tensors of a folder as its files have them."""

    label: str
    folder: Path
    entries: Mapping[Key, Entry]

    @staticmethod
    def of(folder: Path, label: str = "") -> Folder:
        """Raises DataError where there are no safetensors, or a file is cut short."""
        entries = {Key(group, n): e for group, file in _files(folder) for n, e in header(file).items()}
        if not any(k.group == STOCK for k in entries):
            raise DataError(
                f"{folder}: no model.safetensors and no {INDEX}; give a model's folder (weights in other formats are "
                "not read: load it in transformers and save it)"
            )
        return Folder(label or str(folder), folder, entries)

    def read(self, key: Key, start: int, stop: int) -> Tensor:
        return widened(read(self.entries[key], start, stop))


def widened(values: Tensor) -> Tensor:
    """Half precision as float32; the rest as it is."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def read(entry: Entry, start: int, stop: int) -> Tensor:
    """Elements [start, stop) of a tensor in its own dtype."""
    size = entry.dtype.itemsize
    raw = bytearray((stop - start) * size)
    with entry.file.open("rb") as stream:
        stream.seek(entry.start + start * size)
        if stream.readinto(raw) != len(raw):
            raise DataError(f"{entry.file}: ends inside a tensor; was the copy cut short?")
    return torch.frombuffer(raw, dtype=entry.dtype) if raw else torch.empty(0, dtype=entry.dtype)


def header(file: Path) -> dict[str, Entry]:
    """By name, what a safetensors file says it holds. Raises DataError on a file that is not whole, or whose numbers
    are of a kind that has no mean (quantised ones)."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= size - 8:
            raise DataError(f"{file}: no safetensors file, or cut short ({size:,} bytes)")
        try:
            found = json.loads(stream.read(length))
        except ValueError as error:
            raise DataError(f"{file}: its header cannot be read ({error}); was the copy cut short?") from error
    found.pop("__metadata__", None)
    entries = {}
    for name, at in found.items():
        if at["dtype"] not in DTYPES:
            raise DataError(f"{file}: {name} is in {at['dtype']}, which cannot be merged; save plain weights of it")
        entries[name] = entry = Entry(file, at["dtype"], tuple(at["shape"]), 8 + length + at["data_offsets"][0])
        if entry.start + entry.count * entry.dtype.itemsize > size:
            raise DataError(f"{file}: ends inside {name} ({size:,} bytes); was the copy cut short?")
    return entries


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(group, file) of the stock weights, of our own parts, and of modules in folders (2_Dense/model.safetensors)."""
    if (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        for name in sorted(set(names)):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: {INDEX} names {name}, which is not there; copy the folder again")
            yield STOCK, folder / name
    elif (folder / "model.safetensors").is_file():
        yield STOCK, folder / "model.safetensors"
    if (folder / WEIGHTS).is_file():
        yield WEIGHTS, folder / WEIGHTS
    for file in sorted(folder.glob("[0-9]_*/model.safetensors")):  # sentence-transformers' modules
        yield file.relative_to(folder).as_posix(), file


def matched(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that ends as `name` does, for longest; None where there is no such, or are several.

    Modules and files name one tensor differently: a prefix is there or is not, or another (`model.layers.0.q.weight`,
    `model.language_model.layers.0.q.weight`). The last two parts at least must agree.
    """
    asked = name.split(".")[::-1]
    best, found = 1, list[str]()
    for candidate in names:
        if candidate == name:
            return name
        depth = 0
        for a, b in zip(asked, candidate.split(".")[::-1], strict=False):
            if a != b:
                break
            depth += 1
        if depth > best:
            best, found = depth, [candidate]
        elif depth == best:
            found.append(candidate)
    return found[0] if len(found) == 1 and best > 1 else None
