"""What a data worker does: read rows and count their tokens, then read rows again and collate one chunk of them.

Everything here is a pure function of the address of a row, so it does not matter which process does it, or how often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, Protocol, Self, TypeVar

from . import patterns
from .instruct import demonstrations, drawn, fits, prompts
from .mix import Feed
from .order import Address
from .types import Clock, Cost, DataError, Example, Item, Limits, Prompted, Rows


class Collated(Protocol):
    """What the loader needs to know of a packed row (model.types.Inputs)."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    @property
    def failed(self) -> tuple[int, ...]: ...

    def pin(self) -> Self: ...


T = TypeVar("T", bound=Collated)
T_co = TypeVar("T_co", bound=Collated, covariant=True)


class Format(Protocol[T_co]):
    """Counts and collates (model.types.Format, handed down: data knows no model)."""

    def count(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Cost]: ...

    def collate(
        self, prompts: Sequence[Prompted], limits: Sequence[Limits], dummies: Sequence[str] = (), skip: bool = False
    ) -> T_co: ...


@dataclass(frozen=True)
class Bad:
    """A row that gives nothing to a batch, and why. lacking: it is sound, but can form none of its feed's patterns, and
    the feed lets such rows go."""

    source: int
    key: str
    reason: str
    lacking: bool = False


@dataclass(frozen=True)
class Measured:
    """A row as planning knows it: its drawn example without content, and the cost of its query and each document."""

    address: Address
    example: Example
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class _Row:
    """A row that was read, for all that is made of it in one piece of work."""

    example: Example
    feed: Feed

    @cached_property
    def right(self) -> tuple[str, ...]:
        """What is right for any view of it: hundreds of ids, found once."""
        return patterns.right(self.example, self.feed.patterns)


_Read = dict[tuple[int, int], _Row]  # rows of a piece of work by source and place: its pieces are small


@dataclass(frozen=True)
class Work(Generic[T]):
    """All that a worker needs, sent to it once. steps: of the stage, 0 where nothing hangs on progress."""

    rows: tuple[Rows, ...]
    feeds: tuple[Feed, ...]
    format: Format[T]
    limits: tuple[Limits, ...]  # of each source
    seed: int
    skip: bool
    steps: int = 0

    def example(self, address: Address) -> Example:
        """The row as it was drawn, in its pattern where it has one."""
        return self._drawn(self._row(address.source, address.row, {}), address)

    def measure(self, addresses: Sequence[Address]) -> list[Measured | Bad]:
        """Read and counted together; a piece with a bad row in it, row by row. A row that is seen in several patterns
        gives as many entries."""
        try:
            return self._measure(addresses)
        except (DataError, OSError) as error:
            if not self.skip:
                raise
            if len(addresses) > 1:
                return [m for a in addresses for m in self.measure([a])]
            return [Bad(addresses[0].source, self._key(addresses[0]), str(error))]

    def _measure(self, addresses: Sequence[Address]) -> list[Measured | Bad]:
        read: _Read = {}
        seen = [s for a in addresses for s in self._seen(a, read)]
        asked = [self._prompts(*s, read) if not isinstance(s, Bad) else () for s in seen]
        flat = [p for row in asked for p in row]
        costs = iter(self.format.count(flat, [self.limits[p.group] for p in flat]))
        return [
            s if isinstance(s, Bad) else Measured(s[0], _bare(s[1]), tuple(next(costs) for _ in row))
            for s, row in zip(seen, asked, strict=True)
        ]

    def _row(self, source: int, row: int, read: _Read) -> _Row:
        if (source, row) not in read:
            read[source, row] = _Row(self.rows[source][row], self.feeds[source])
        return read[source, row]

    def _seen(self, address: Address, read: _Read) -> Iterator[tuple[Address, Example] | Bad]:
        """The examples that this draw of a row gives: one, or one for each pattern that it is seen in."""
        found, feed = self._row(address.source, address.row, read), self.feeds[address.source]
        if not feed.patterns:
            yield address, self._drawn(found, address)
            return
        row = found.example
        chosen = patterns.views(row, feed.patterns, feed.draw, self.seed, address.draw)
        if not chosen:
            if feed.missing == "raise":
                raise DataError(patterns.lacking(row, feed.patterns))
            yield Bad(address.source, row.key, patterns.lacking(row, feed.patterns), lacking=True)
        for pattern in chosen:
            one = address._replace(pattern=pattern)
            yield one, self._drawn(found, one)

    def _drawn(self, found: _Row, address: Address) -> Example:
        row, feed = found.example, found.feed
        if address.pattern >= 0:
            row = patterns.formed(row, feed.patterns, address.pattern, self.seed, address.draw, found.right)
        progress = address.step / self.steps if self.steps else 0.0
        example = drawn(row, feed, Clock(address.step, progress, self.seed), address.draw)
        return replace(example, source=self.rows[address.source].name)

    def _prompts(self, address: Address, example: Example, read: _Read, asked: bool = True) -> tuple[Prompted, ...]:
        """asked: whether the query is wanted, which alone has demonstrations."""
        return prompts(example, address.source, self._shots(address, example, read) if asked else ())

    def _shots(self, address: Address, example: Example, read: _Read) -> list[Example]:
        """Demonstrations from other rows of the source, in the same pattern; fewer where it has no more that fit."""
        rows, count = self.rows[address.source], self.feeds[address.source].shots
        shots: list[Example] = []
        if not count:
            return shots
        for row in demonstrations(len(rows), address.row, count, self.seed, address.source, address.draw):
            shot = self._shot(address._replace(row=row), example, read)
            if shot is not None and fits(example, shot):
                shots.append(shot)
            if len(shots) == count:
                break
        return shots

    def _shot(self, address: Address, example: Example, read: _Read) -> Example | None:
        """The row as a demonstration for the example; None where it cannot form the pattern, or, where bad rows may be
        skipped, be read: nobody misses it, and the example is not to blame."""
        try:
            found = self._row(address.source, address.row, read)
            if address.pattern >= 0 and not patterns.possible(found.example, [found.feed.patterns[address.pattern]]):
                return None
            return self._drawn(found, address)
        except (DataError, OSError) as error:
            if self.skip:
                return None
            raise DataError(f"{self._key(address)}, a demonstration for {example.key}: {error}") from error

    def _key(self, address: Address) -> str:
        try:
            return self.rows[address.source][address.row].key
        except (DataError, OSError):
            return f"{self.rows[address.source].name} row {address.row}"

    def collate(self, entries: Sequence[tuple[Address, int]], dummies: tuple[str, ...]) -> T:
        """One chunk: (row, 0 for its query or k for its k-th document) of each segment."""
        read: _Read = {}
        queries = {a for a, slot in entries if not slot}
        asked = {
            a: self._prompts(a, self._drawn(self._row(a.source, a.row, read), a), read, a in queries)
            for a in dict.fromkeys(a for a, _ in entries)
        }
        picked = [asked[a][slot] for a, slot in entries]
        return self.format.collate(picked, [self.limits[p.group] for p in picked], dummies, self.skip)


def _bare(example: Example) -> Example:
    """Without its contents: between the passes a row costs its address, ids and counts."""

    def bare(item: Item) -> Item:
        return Item((), item.id)

    return replace(
        example,
        query=bare(example.query),
        positives=tuple(bare(i) for i in example.positives),
        negatives=tuple(bare(i) for i in example.negatives),
        answer="",
        fields={},
    )
