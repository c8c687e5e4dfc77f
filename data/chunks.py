"""Token counts -> the chunks of one update: sorted, cut by token budget, the same number on every rank.

A chunk is one packed row, so its cost is the sum of its tokens and nothing is padded.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from .types import Cost

MEDIA = ("image", "video", "audio")  # the order in which every rank runs its towers
_TRIES = 6  # of balancing: each halves what the fullest chunk may be above the mean


@dataclass(frozen=True)
class Chunk:
    """One packed row. entries: indices into the costs, longest first; tokens: theirs together; towers: the media
    towers that it runs, in order; dummies: those of them that no entry of its own needs ("text": nothing is in it)."""

    entries: tuple[int, ...]
    tokens: int
    towers: tuple[str, ...] = ()
    dummies: tuple[str, ...] = ()


def plan(
    costs: Sequence[Cost], budget: int, world: int = 1, *, keys: Sequence[str] = (), stage: str = ""
) -> list[tuple[Chunk, ...]]:
    """The chunks of each rank. Every entry is in one chunk, no chunk holds more than `budget` tokens, and the i-th
    chunks of all ranks run the same towers and are close in tokens. Pure.

    keys (one an entry) and stage only serve the error for an item that is longer than the budget.
    """
    _check(costs, budget, world, keys, stage)
    order = sorted(range(len(costs)), key=lambda e: (-costs[e].tokens, e))
    bins = _divisible(_balanced(costs, order, budget, world), world)
    chunks = sorted((_chunk(costs, b) for b in bins), key=lambda c: (-len(c.towers), -c.tokens, c.entries))
    ranks: list[list[Chunk]] = [[] for _ in range(world)]
    for i in range(0, len(chunks), world):
        row = _alike(chunks[i : i + world])
        # Back and forth, so that no rank always gets the longest of its row.
        for rank, chunk in enumerate(row if (i // world) % 2 == 0 else row[::-1]):
            ranks[rank].append(chunk)
    return [tuple(r) for r in ranks]


def _check(costs: Sequence[Cost], budget: int, world: int, keys: Sequence[str], stage: str) -> None:
    name = f"stage {stage!r}: " if stage else ""
    if len(costs) < world:
        raise ValueError(f"{name}{len(costs)} items for {world} ranks; expected at least one each: raise the batch")
    if not costs:
        raise ValueError(f"{name}no items to plan; expected one at least")
    longest = max(range(len(costs)), key=lambda e: costs[e].tokens)
    if costs[longest].tokens > budget:
        key = f", key {keys[longest]}" if keys else f", item {longest}"
        raise ValueError(
            f"{name}chunk_tokens={budget} is smaller than the longest item ({costs[longest].tokens:,} tokens{key}); "
            "raise chunk_tokens or lower max_tokens"
        )


def _balanced(costs: Sequence[Cost], order: Sequence[int], budget: int, world: int) -> list[list[int]]:
    """As few bins as best-fit decreasing finds under the budget, or the next multiple of world, and those as even as
    a lower capacity makes them."""
    best = _fit(costs, order, budget)
    most = -(-len(best) // world) * world
    total = sum(costs[e].tokens for e in order)
    low, high = max(-(-total // most), costs[order[0]].tokens), budget
    for _ in range(_TRIES):
        if low >= high:
            break
        middle = (low + high) // 2
        tried = _fit(costs, order, middle)
        if len(tried) <= most:
            best, high = tried, middle
        else:
            low = middle + 1
    return best


def _fit(costs: Sequence[Cost], order: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each item goes to the fullest bin that has room. At most 11/9 of the fewest, and one."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), ascending
    for e in order:
        tokens = costs[e].tokens
        at = bisect_left(room, (tokens, -1))
        free, b = room.pop(at) if at < len(room) else (capacity, len(bins))
        if b == len(bins):
            bins.append([])
        bins[b].append(e)
        insort(room, (free - tokens, b))
    return bins


def _divisible(bins: list[list[int]], world: int) -> list[list[int]]:
    """Bins cut in two, those of most items first, until every rank has as many; with too few items some stay empty."""
    bins = sorted(bins, key=len)
    while len(bins) % world:
        most = bins.pop()
        bins += [most[::2], most[1::2]]  # every other one: halves of about equal tokens, for the list is sorted
        bins.sort(key=len)
    return bins


def _chunk(costs: Sequence[Cost], entries: Sequence[int]) -> Chunk:
    needed = {t for e in entries for t in costs[e].towers}
    return Chunk(tuple(entries), sum(costs[e].tokens for e in entries), _ordered(needed))


def _alike(row: Sequence[Chunk]) -> list[Chunk]:
    """The same towers in every chunk of the row: a collective that one rank skips would hang the others."""
    towers = _ordered({t for c in row for t in c.towers})
    alike = []
    for c in row:
        missing = tuple(t for t in towers if t not in c.towers)
        alike.append(Chunk(c.entries, c.tokens, towers, missing if c.entries or missing else ("text",)))
    return alike


def _ordered(towers: set[str]) -> tuple[str, ...]:
    return tuple(sorted(towers, key=lambda t: (MEDIA.index(t) if t in MEDIA else len(MEDIA), t)))
