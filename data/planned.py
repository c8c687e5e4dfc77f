"""A step before anything is decoded: its rows, their costs and relation, and the chunks of every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .chunks import Chunk, plan
from .order import Address
from .relation import Relation
from .types import Cost, DataError
from .work import Bad, Measured


@dataclass(frozen=True)
class Plan:
    """One step before anything is decoded. Entries are the Q queries, then the N documents in the Relation's order."""

    step: int
    addresses: tuple[Address, ...]  # (Q,)
    keys: tuple[str, ...]  # (Q,)
    relation: Relation
    costs: tuple[Cost, ...]  # (Q + N,)
    chunks: tuple[Chunk, ...]  # of this rank
    groups: tuple[int, ...]  # (Q + N,) index of the entry's source
    slots: tuple[tuple[int, int], ...]  # (Q + N,) (its query, 0 for that query itself or k for its k-th document)
    bad: tuple[Bad, ...] = ()  # rows left out
    of_ranks: tuple[tuple[Chunk, ...], ...] = ()  # the chunks of all ranks, as many each; empty where there is one

    @property
    def ranks(self) -> tuple[tuple[Chunk, ...], ...]:
        """The chunks of every rank, in rank order."""
        return self.of_ranks or (self.chunks,)

    @property
    def sources(self) -> tuple[int, ...]:
        """(Q,) index of each query's source."""
        return self.groups[: len(self.keys)]

    @property
    def tokens(self) -> int:
        return sum(c.tokens for c in self.costs)

    def labels(self, group: int) -> int:
        """Next-token labels that source `group` has in this step: the global count of a Local objective."""
        return sum(c.labels for c, g in zip(self.costs, self.groups, strict=True) if g == group)


def planned(
    step: int,
    measured: Sequence[Measured | Bad],
    names: Sequence[str],
    budget: int,
    stretch: bool,
    rank: int,
    ranks: int,
    stage: str = "",
) -> Plan:
    """The plan of a step's counted rows. budget: tokens a chunk; stretch: an item that is longer raises it. Raises
    DataError where there is no row, and where an item does not fit."""
    rows = [m for m in measured if isinstance(m, Measured)]
    bad = tuple(m for m in measured if isinstance(m, Bad))
    if not rows:
        raise DataError(f"step {step}: none of its {len(bad)} rows can be read, the first because: {bad[0].reason}")
    queries = [(q, 0) for q in range(len(rows))]
    slots = (*queries, *((q, k) for q, m in enumerate(rows) for k in range(1, len(m.costs))))
    known: dict[Cost, Cost] = {}  # equal ones are one object: a large batch has few different ones
    costs = tuple(known.setdefault(c, c) for c in (rows[q].costs[k] for q, k in slots))
    keys = tuple(m.example.key for m in rows)
    budget = max(budget, *(c.tokens for c in costs)) if stretch else budget
    of_ranks = plan(costs, budget, ranks, keys=[keys[q] for q, _ in slots], stage=stage)
    return Plan(
        step=step,
        addresses=tuple(m.address for m in rows),
        keys=keys,
        relation=Relation.of([m.example for m in rows], names),
        costs=costs,
        chunks=of_ranks[rank],
        groups=tuple(rows[q].address.source for q, _ in slots),
        slots=slots,
        bad=bad,
        of_ranks=tuple(of_ranks) if len(of_ranks) > 1 else (),
    )
