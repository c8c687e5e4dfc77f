"""A graph of rows -> groups of equal size that cut few edges: METIS, then rows moved until all sizes are right."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

Longs = NDArray[np.int64]
_MOST = 2**31 - 1  # METIS is built with 32-bit numbers


def needs_metis() -> None:
    """Raises ImportError, with the remedy, where METIS is not installed: to be asked before hours of encoding."""
    if importlib.util.find_spec("pymetis") is None:
        raise ImportError('pymetis is not installed: pip install "omni2vec[mine]"')


def metis(ends: Longs, neighbours: Longs, parts: int, seed: int) -> Longs:
    """(n,) the part of each row, in 0 ... parts - 1; sizes are about equal, some may be empty. The graph as
    neighbours.adjacency gives it. The same for the same seed and the same build of METIS (Karypis and Kumar, 1998).
    Raises ValueError for a graph of more rows or edges than METIS can number."""
    if max(len(ends), len(neighbours)) > _MOST:
        raise ValueError(
            f"a graph of {len(ends):,} rows and {len(neighbours):,} neighbours of all rows together; METIS numbers "
            f"{_MOST:,} of each at most: lower Cluster(neighbours), or cluster fewer rows (Take, or a part at a time)"
        )
    import pymetis

    options = pymetis.Options()
    options.seed = seed % (1 << 31)
    graph = pymetis.CSRAdjacency(np.concatenate([[0], ends]).astype(np.int32), neighbours.astype(np.int32))
    _, part = pymetis.part_graph(parts, graph, options=options)
    return np.asarray(part, np.int64)


def even(part: Longs, ends: Longs, neighbours: Longs, size: int) -> tuple[Longs, int]:
    """(part, rows moved): parts of exactly `size` rows, but for the last, which has the rest.

    Each part that is too large gives away the rows with the fewest edges inside it; each of these goes where there is
    room and it has most edges; without edges, where there is most room. No random choice is made.
    """
    n = len(part)
    parts = -(-n // size)
    sizes = np.bincount(part, minlength=parts)
    if len(sizes) > parts:
        raise ValueError(f"{len(sizes)} parts of {n} rows; expected {parts} of {size}")
    part = _smallest_last(part, sizes)
    room = np.full(parts, size, np.int64)
    room[-1] = n - (parts - 1) * size
    begins = np.concatenate([[0], ends[:-1]])
    owner = np.repeat(np.arange(n), ends - begins)
    inside = np.bincount(owner[part[owner] == part[neighbours]], minlength=n)
    # Within a part, the rows in order of their edges inside it: those beyond its size are given away.
    order = np.lexsort((np.arange(n), -inside, part))
    sizes = np.bincount(part, minlength=parts)
    rank = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    moved = np.sort(order[rank >= room[part[order]]])
    part[moved] = -1
    room -= np.bincount(part[part >= 0], minlength=parts)
    for row in moved.tolist():
        at = part[neighbours[begins[row] : ends[row]]]
        at = at[at >= 0]
        at = at[room[at] > 0]
        best = int(np.bincount(at).argmax()) if len(at) else int(room.argmax())
        part[row] = best
        room[best] -= 1
    return part, len(moved)


def _smallest_last(part: Longs, sizes: Longs) -> Longs:
    """The parts numbered anew, so that the smallest is the last; the others keep their order."""
    small = int(sizes.argmin())
    new = np.arange(len(sizes))
    new[small + 1 :] -= 1
    new[small] = len(sizes) - 1
    return new[part]
