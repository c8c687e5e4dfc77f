"""Vectors as small integers: int8 with one step for all, or one bit a dimension. Training rounds by these functions.

Codes are compared as they are stored. The dot product of int8 codes, times the squared step, is that of the rounded
vectors; nothing divides by their length, which an index of bytes does not hold.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Stored = Literal["float", "int8", "binary"]
_SAMPLE = 1 << 18  # numbers that a step is fitted to: enough for three digits, and quick enough for every update
_EXACT = 1024  # dimensions whose products float32 sums without rounding: 127**2 * 1024 < 2**24


def top(bits: int) -> int:
    """The largest code of `bits` bits; the smallest is minus that. ValueError outside 2..8."""
    if not 2 <= bits <= 8:
        raise ValueError(f"codes of {bits} bits; expected 2 to 8, or binary() for one")
    return int(2 ** (bits - 1) - 1)


def levels(vectors: Tensor, step: Tensor | float, bits: int = 8) -> Tensor:
    """vectors (n, D) in units of `step`, rounded and cut to what `bits` bits hold: whole numbers in the vectors' dtype,
    where what is not a number stays that."""
    _positive(step)
    most = top(bits)
    return (vectors / step).round().clamp(-most, most)


def int8(vectors: Tensor, step: Tensor | float, bits: int = 8) -> Tensor:
    """The codes of vectors (n, D): (n, D) int8, from -127 to 127 where they have 8 bits."""
    return levels(vectors, step, bits).to(torch.int8)


def floats(codes: Tensor, step: Tensor | float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The rounded vectors that int8 codes stand for, (n, D). Not of unit length."""
    return codes.to(dtype) * step


def signs(vectors: Tensor) -> Tensor:
    """1 where a number is above 0, else -1, in the vectors' dtype."""
    return torch.where(vectors > 0, 1.0, -1.0).to(vectors.dtype)


def binary(vectors: Tensor) -> Tensor:
    """vectors (n, D) -> (n, D / 8) uint8: a bit is set where a number is above 0, the first dimension in the highest
    bit of the first byte, as numpy.packbits and most indexes have it."""
    if vectors.shape[1] % 8:
        raise ValueError(f"binary codes of {vectors.shape[1]} dimensions; expected a multiple of 8, for whole bytes")
    bits = (vectors > 0).reshape(len(vectors), -1, 8).to(torch.uint8)
    return (bits << torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)).sum(2, dtype=torch.uint8)


def check(precision: Stored, step: float | None) -> None:
    """Raises ValueError for a precision that there is not, and for int8 where no step was learned."""
    if precision not in get_args(Stored):
        raise ValueError(f"precision={precision!r}; expected one of {', '.join(map(repr, get_args(Stored)))}")
    if precision == "int8" and step is None:
        raise ValueError(
            "precision='int8': this embedder has learned no step; train it with Quantised (an objective), or take one "
            "from vectors: omni2vec.model.codes.calibrated"
        )


def stored(vectors: Tensor, precision: Stored, step: float | None) -> Tensor:
    """Vectors (n, D) as they are to be stored."""
    if precision == "float":
        return vectors
    return binary(vectors) if precision == "binary" else int8(vectors, step or 0.0)


def similar(a: Tensor, b: Tensor) -> Tensor:
    """Codes (n, ...) and (m, ...) of one kind -> (n, m) int32, higher for nearer, exact.

    int8: dot products of the codes. uint8, of `binary`: dot products of the signs, D - 2 * (Hamming distance).
    """
    if a.dtype != b.dtype or a.dtype not in (torch.int8, torch.uint8) or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"codes of {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}; expected two of int8() or two of "
            "binary(), of equal width"
        )
    packed = a.dtype == torch.uint8
    width = _EXACT // 8 if packed else _EXACT
    out = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    with torch.autocast(a.device.type, enabled=False):
        for first in range(0, a.shape[1], width):
            x, y = (_plain(t[:, first : first + width], packed) for t in (a, b))
            out += (x @ y.T).to(torch.int32)
    return out


def calibrated(*vectors: Tensor, bits: int = 8) -> Tensor:
    """A step for vectors (n, D) where none was learned: the one of least squared error, of 48 from the largest number
    down to a sixteenth of it, (1,). Fitted to at most 2**18 numbers each, of rows evenly spaced; 1 for zeros
    alone, and for what is not finite, which rounding leaves as it is."""
    most = top(bits)
    found = [v.detach()[:: max(-(-v.numel() // _SAMPLE), 1)].flatten() for v in vectors]
    sample = torch.cat(found)
    largest = float(sample.abs().amax()) if len(sample) else 0.0
    if not 0 < largest < math.inf:
        return torch.ones(1, dtype=vectors[0].dtype, device=vectors[0].device)
    steps = (largest / most * np.geomspace(1.0, 1 / 16, 48)).tolist()
    errors = [float((sample - levels(sample, s, bits) * s).square().mean()) for s in steps]
    return sample.new_tensor([steps[int(np.argmin(errors))]])


def step_at(step: Tensor, full: int, dims: int) -> Tensor:
    """The step for the first `dims` of `full` dimensions, cut and brought to unit length: numbers of a unit vector are
    of the size 1 / sqrt(dims), and the step is in proportion."""
    factor: float = (full / dims) ** 0.5
    return step * factor


def _plain(codes: Tensor, packed: bool) -> Tensor:
    if not packed:
        return codes.float()
    bits = codes[:, :, None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=codes.device) & 1
    return bits.flatten(1).float() * 2 - 1


def _positive(step: Tensor | float) -> None:
    if not isinstance(step, Tensor) and not step > 0:
        raise ValueError(f"step={step}; expected a number above 0, learned or of calibrated(vectors)")
