"""What a data worker does: read rows and count their tokens, then read rows again and collate one chunk of them.

Everything here is a pure function of the address of a row, so it does not matter which process does it, or how often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeVar

from .instruct import drawn, prompts
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
    """A row that could not be read, and why."""

    source: int
    key: str
    reason: str


@dataclass(frozen=True)
class Measured:
    """A row as planning knows it: its drawn example without content, and the cost of its query and each document."""

    address: Address
    example: Example
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class Work(Generic[T]):
    """All that a worker needs, sent to it once."""

    rows: tuple[Rows, ...]
    feeds: tuple[Feed, ...]
    format: Format[T]
    limits: tuple[Limits, ...]  # of each source
    seed: int
    skip: bool

    def example(self, address: Address) -> Example:
        rows = self.rows[address.source]
        example = drawn(rows[address.row], self.feeds[address.source], Clock(0, 0.0, self.seed), address.draw)
        return replace(example, source=rows.name)

    def measure(self, addresses: Sequence[Address]) -> list[Measured | Bad]:
        """Read and counted together; a piece with a bad row in it, row by row."""
        try:
            return list(self._measure(addresses))
        except (DataError, OSError) as error:
            if not self.skip:
                raise
            if len(addresses) > 1:
                return [m for a in addresses for m in self.measure([a])]
            return [Bad(addresses[0].source, self._key(addresses[0]), str(error))]

    def _measure(self, addresses: Sequence[Address]) -> list[Measured]:
        examples = [self.example(a) for a in addresses]
        asked = [prompts(e, a.source) for e, a in zip(examples, addresses, strict=True)]
        flat = [p for row in asked for p in row]
        costs = iter(self.format.count(flat, [self.limits[p.group] for p in flat]))
        return [
            Measured(a, _bare(e), tuple(next(costs) for _ in row))
            for a, e, row in zip(addresses, examples, asked, strict=True)
        ]

    def _key(self, address: Address) -> str:
        try:
            return self.rows[address.source][address.row].key
        except (DataError, OSError):
            return f"{self.rows[address.source].name} row {address.row}"

    def collate(self, entries: Sequence[tuple[Address, int]], dummies: tuple[str, ...]) -> T:
        """One chunk: (row, 0 for its query or k for its k-th document) of each segment."""
        asked = {a: prompts(self.example(a), a.source) for a in dict.fromkeys(a for a, _ in entries)}
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
    )
