"""Flat arrays in a safetensors file: written aside and renamed, mapped and never loaded.

The library's save_file keeps no order of names, and equal contents must have equal bytes.
"""

from __future__ import annotations

import json
import math
import mmap
import secrets
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .types import DataError

_TYPES = {"int64": "I64", "int32": "I32", "uint8": "U8", "float64": "F64"}
CHECK = "crc32"  # key in the metadata: of the head without it, and of the arrays
_SMALL = 1 << 16  # bytes of a file that is read whole instead of mapped
_LONGEST = 1 << 26  # bytes of a head that is still believed


def write(path: Path, arrays: Mapping[str, NDArray[Any]], key: str, about: Mapping[str, Any]) -> None:
    """`about` stands in the metadata under `key`. Many processes may write one path: each file is whole, one stays."""
    # Largest items first keeps every array aligned.
    ordered = sorted(arrays.items(), key=lambda x: (-x[1].itemsize, x[0]))
    head: dict[str, Any] = {"__metadata__": {key: json.dumps(about, sort_keys=True)}}
    at = 0
    for name, array in ordered:
        kind = _TYPES[str(array.dtype)]
        head[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    head["__metadata__"][CHECK] = str(_sum(head, [np.ascontiguousarray(_little(a)) for _, a in ordered]))
    raw = json.dumps(head, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with aside.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for _, array in ordered:
                file.write(_little(array).tobytes())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read(path: Path, kinds: Mapping[str, str], key: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """(about, arrays by name) of a file with exactly the arrays `kinds` (name -> type). Raises DataError otherwise."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        raw = file.read(size) if size < _LONGEST else b""
        try:
            head = json.loads(raw)
            about = dict(json.loads(head.pop("__metadata__")[key]))
            ends = [8 + size + a["data_offsets"][1] for a in head.values()]
            typed = {name: a["dtype"] for name, a in head.items()} == {n: _TYPES[k] for n, k in kinds.items()}
            whole = typed and path.stat().st_size == max(ends)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise DataError(f"{path}: is not whole, or of another version; delete it, it is built again")
        # A map holds a file handle for as long as it lives, and a run may have a thousand small catalogues.
        small = path.stat().st_size <= _SMALL and not file.seek(0)
        mapped = file.read() if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    checked(path, json.loads(raw), mapped, 8 + size)
    return about, {name: _mapped(mapped, 8 + size, a, kinds[name]) for name, a in head.items()}


def checked(path: Path, head: dict[str, Any], mapped: mmap.mmap | bytes, start: int) -> None:
    """Raises DataError where a byte is not what was written. Files from before there were sums are believed."""
    told = head["__metadata__"].pop(CHECK, None)
    with memoryview(mapped) as whole, whole[start:] as arrays:
        if told is not None and told != str(_sum(head, [arrays])):
            raise DataError(f"{path}: is damaged, its bytes do not add up; delete it, it is built again")


def _sum(head: Mapping[str, Any], arrays: Iterable[Any]) -> int:
    total = zlib.crc32(json.dumps(head, separators=(",", ":")).encode())
    for array in arrays:
        total = zlib.crc32(array, total)
    return total


def _little(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _mapped(mapped: mmap.mmap | bytes, start: int, told: Mapping[str, Any], kind: str) -> NDArray[Any]:
    shape = tuple(told["shape"])
    flat = np.frombuffer(mapped, np.dtype(kind).newbyteorder("<"), math.prod(shape), start + told["data_offsets"][0])
    return flat.reshape(shape)
