"""One rank's part of a checkpoint: ranges of flattened parameters in a safetensors file, read again by any range.

The file is written as a stream, which the library's save_file cannot: no second copy, and the digest in the same pass.
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.types import DataError

_STRIDE = 1 << 23  # bytes written and digested at a time: they are still in the processor's cache for the second
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8",
}  # fmt: skip
Shapes = Mapping[str, tuple[int, ...]]


def name_of(rank: int, size: int) -> str:
    return f"part-{rank:05d}-of-{size:05d}.safetensors"


def key_of(kind: str, name: str, start: int) -> str:
    return f"{kind}|{name}|{start}"


def header(entries: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], about: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with, whose tensors (key, dtype, shape) follow without a gap in this order."""
    table: dict[str, Any] = {"__metadata__": dict(about)}
    at = 0
    for key, dtype, shape in entries:
        end = at + math.prod(shape) * dtype.itemsize
        table[key] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # tensors begin at a multiple of 8 bytes
    return len(raw).to_bytes(8, "little") + raw


def view(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, not copied where it is contiguous."""
    raw: Any = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def write(path: Path, blocks: Iterable[bytes | memoryview]) -> str:
    """Blocks into a file that is on the disk when this returns; their BLAKE2b digest. Raises OSError."""
    h = blake2b(digest_size=16)
    with path.open("wb") as file:
        for block in blocks:
            for at in range(0, len(block), _STRIDE):
                piece = block[at : at + _STRIDE]
                file.write(piece)
                h.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return h.hexdigest()


def digest_of(path: Path) -> str:
    """As `write` gave it."""
    h, buffer = blake2b(digest_size=16), bytearray(_STRIDE)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            h.update(view[:count])
    return h.hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes names in `folder` last: a rename is on the disk only with the folder that it is in."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class Parts:
    """Several parts, opened and mapped into memory: any range of any parameter, whatever ranks wrote them."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Raises DataError where a file cannot be read or a parameter's elements are not all there."""
        from safetensors import SafetensorError, safe_open

        self.shapes: dict[str, tuple[int, ...]] = {}  # of whole parameters
        self._open: list[Any] = []
        # (kind, name) -> ranges (start, stop, which file), sorted
        self._ranges: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
        for file in files:
            try:
                part = safe_open(file, "pt")
                self._index(part)
            except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file}: is no part of a checkpoint that can be read ({error})") from error
        self._check(files)

    def _index(self, part: Any) -> None:
        shapes = json.loads(part.metadata()["shapes"])
        self.shapes.update({name: tuple(shape) for name, shape in shapes.items()})
        for key in part.keys():  # noqa: SIM118  (not a dict)
            kind, rest = key.split("|", 1)
            name, start = rest.rsplit("|", 1)
            stop = int(start) + part.get_slice(key).get_shape()[0]
            self._ranges.setdefault((kind, name), []).append((int(start), stop, len(self._open)))
        self._open.append(part)

    def _check(self, files: Sequence[Path]) -> None:
        """Every parameter's weight, and each of its moments that is there, from its first element to its last."""
        where = files[0].parent if files else Path()
        for ranges in self._ranges.values():
            ranges.sort()
        for name in self.shapes:
            if ("weight", name) not in self._ranges:
                raise DataError(f"{where}: no part holds the weight of {name}; a part is missing or of another save")
        for (kind, name), ranges in sorted(self._ranges.items()):
            count = 1 if kind == "step" else math.prod(self.shapes[name])
            reached = 0
            for start, stop, _ in ranges:
                if start > reached:
                    break
                reached = max(reached, stop)
            if reached != count:
                raise DataError(
                    f"{where}: {kind} of {name} has {count:,} elements, of which the parts lack those from "
                    f"{reached:,}; a part is missing or of another save"
                )

    def read(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of flattened parameter `name`, 1-D, on the CPU, as saved; only they are read. Raises
        KeyError where none is saved of this kind."""
        ranges = self._ranges[kind, name]
        found, at = [], start
        while at < stop:
            begin, end, part = ranges[bisect_right(ranges, at, key=lambda r: r[0]) - 1]
            until = min(stop, end)
            if not begin <= at < until:
                raise DataError(f"{kind} of {name} has no element {at:,}; asked for {start:,} to {stop:,}")
            saved = self._open[part].get_slice(key_of(kind, name, begin))
            found.append(saved[at - begin : until - begin])
            at = until
        if not found:
            return torch.empty(0)
        return found[0] if len(found) == 1 else torch.cat(found)


def whole(parts: Parts) -> Iterator[tuple[str, Tensor]]:
    """(name, weight in its own shape), one parameter at a time, by name."""
    for name, shape in sorted(parts.shapes.items()):
        yield name, parts.read(name, "weight", 0, math.prod(shape)).view(shape)
