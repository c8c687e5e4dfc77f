"""Counter-based random numbers: a draw is a pure function of a key, so any draw can be had without those before it.

The generators of numpy may change their streams between releases; these may not, for batch t must stay batch t.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .types import digest

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_SMALL = 1 << 16  # up to here a permutation is sorted out and cached; above, it is computed place by place
_SHORT = 1 << 12  # up to here as many are cached as a mixture of a thousand sources has at hand
_ROUNDS = 6  # four make a Feistel network of good round functions a good permutation (Luby and Rackoff); two for safety


def _mix(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(*key: int | str) -> int:
    """64 random bits named by the key, in [0, 2^64)."""
    h = 0
    for k in key:
        h = _mix(h ^ (int(digest(k)[:16], 16) if isinstance(k, str) else k & _MASK))
    return h


def permuted(places: NDArray[np.int64], size: int, *key: int | str) -> NDArray[np.int64]:
    """The permutation of range(size) named by the key, at the places asked for. O(places) time and memory."""
    if size <= _SMALL:
        return (_short if size <= _SHORT else _sorted)(size, bits(*key))[places]
    return _feistel(places, size, bits(*key))


def choose(size: int, count: int, *key: int | str) -> list[int]:
    """`count` different numbers of range(size), ascending; all of them if there are no more."""
    if count >= size:
        return list(range(size))
    return sorted(permuted(np.arange(count), size, *key).tolist())


def noise(first: int, count: int, key: int) -> NDArray[np.uint64]:
    """64 random bits for each of the places first, ..., first + count - 1, under a key of `bits`."""
    return _mix_array(np.arange(first, first + count, dtype=np.uint64) ^ np.uint64(key))


def uniform(ids: NDArray[np.int64], count: int, *key: int | str) -> NDArray[np.float64]:
    """(n, count) numbers of [0, 1) for each id of (n, 2), under the key: equal ids have equal numbers."""
    seeds = np.full(len(ids), bits(*key), dtype=np.uint64)
    for half in ids.astype(np.uint64).T:
        seeds = _mix_array(seeds ^ half)
    drawn = _mix_array(_mix_array(np.arange(count, dtype=np.uint64)) ^ seeds[:, None])
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=2048)
def _short(size: int, seed: int) -> NDArray[np.int64]:
    return _order(size, seed)


@lru_cache(maxsize=64)
def _sorted(size: int, seed: int) -> NDArray[np.int64]:
    return _order(size, seed)


def _order(size: int, seed: int) -> NDArray[np.int64]:
    noise = _mix_array(np.arange(size, dtype=np.uint64) ^ np.uint64(seed))
    order = np.argsort(noise, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def _feistel(places: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """A bijection of [0, 4^half) walked until it lands in range(size): fewer than four rounds of walking on average."""
    half = np.uint64(((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(bits(seed, r)) for r in range(_ROUNDS)]
    x = places.astype(np.uint64)
    outside = np.ones(len(x), dtype=bool)
    while outside.any():
        left, right = x[outside] >> half, x[outside] & low
        for k in keys:
            left, right = right, left ^ (_mix_array(right ^ k) & low)
        x[outside] = (left << half) | right
        outside = x >= np.uint64(size)
    return x.astype(np.int64)
