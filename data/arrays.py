"""Flat arrays in a safetensors file: written aside and renamed, mapped and never loaded.

The library's save_file keeps no order of names, and equal contents must have equal bytes.
"""

from __future__ import annotations

import json
import mmap
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .types import DataError

_TYPES = {"int64": "I64", "int32": "I32", "uint8": "U8", "float64": "F64"}
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
    raw = json.dumps(head, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with aside.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for _, array in ordered:
                file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
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
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return about, {name: _mapped(mapped, 8 + size, a, kinds[name]) for name, a in head.items()}


def _mapped(mapped: mmap.mmap, start: int, told: Mapping[str, Any], kind: str) -> NDArray[Any]:
    shape = tuple(told["shape"])
    flat = np.frombuffer(mapped, np.dtype(kind).newbyteorder("<"), int(np.prod(shape)), start + told["data_offsets"][0])
    return flat.reshape(shape)
