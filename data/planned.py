"""A step before anything is decoded: its rows, their costs and relation, and the chunks of every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .chunks import Chunk, plan
from .order import Address
from .relation import Relation
from .types import Cost, DataError
from .work import Bad, Measured

EMPTY = 100  # empty plans in a row, behind which nobody waits for another
_REASONS = 3  # that are written out


@dataclass(frozen=True)
class Plan:
    """One step before anything is decoded. Entries are the Q queries, then the N documents in the Relation's order.

    Where rows were left out, it may be that none is left, or fewer items than ranks: then it is empty, Q = N = 0.
    """

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
    too_few: tuple[str, ...] = ()  # keys of sound rows that an empty plan goes without, for there are more ranks

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

    def why(self, names: Sequence[str]) -> dict[str, object]:
        """What an empty plan lacks, for people: rows left out by source, the first reasons, rows too few for ranks."""
        told: dict[str, object] = {"left_out": dict(Counter(names[b.source] for b in self.bad))}
        told["why"] = list(dict.fromkeys(b.reason for b in self.bad))[:_REASONS]
        return told | ({"too_few_for_ranks": list(self.too_few)} if self.too_few else {})

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
    """The plan of a step's counted rows. budget: tokens a chunk; stretch: an item that is longer raises it. Empty where
    rows were left out, and no row is left or fewer items than ranks. Raises ValueError where an item does not fit."""
    rows = [m for m in measured if isinstance(m, Measured)]
    bad = tuple(m for m in measured if isinstance(m, Bad))
    if bad and sum(len(m.costs) for m in rows) < ranks:
        return _empty(step, bad, ranks, tuple(m.example.key for m in rows))
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


def _empty(step: int, bad: tuple[Bad, ...], ranks: int, too_few: tuple[str, ...]) -> Plan:
    none: tuple[tuple[Chunk, ...], ...] = ((),) * ranks
    of_ranks = none if ranks > 1 else ()
    return Plan(step, (), (), Relation.of([], ()), (), (), (), (), bad, of_ranks, too_few)


def first_filled(
    plan: Callable[[int], Plan], names: Sequence[str], start: int, stop: int, stage: str = "", ranks: int = 1
) -> Plan:
    """The first of the plans start, start + 1, ... before `stop` that is not empty, nor would be on `ranks` ranks.
    Raises DataError where there is none among the first 100."""
    found = []
    for step in range(start, min(stop, start + EMPTY)):
        found.append(plan(step))
        if found[-1].keys and (not found[-1].bad or len(found[-1].costs) >= ranks):
            return found[-1]
    raise DataError(_all_empty(found, names, stage))


def checked(plan: Plan, before: Sequence[Plan], names: Sequence[str], stage: str = "") -> list[Plan]:
    """The empty plans in a row up to this one, given those up to the one before. Raises DataError where they are 100:
    a source of which no row can be used would go on for ever."""
    if plan.keys:
        return []
    if len(before) + 1 >= EMPTY:
        raise DataError(_all_empty([*before, plan], names, stage))
    return [*before, plan]


def _all_empty(plans: Sequence[Plan], names: Sequence[str], stage: str) -> str:
    counts = Counter(names[b.source] for p in plans for b in p.bad)
    first = next((b.reason for p in plans for b in p.bad), "")
    left = ", ".join(f"{n:,} of {name!r}" for name, n in counts.most_common())
    few = sum(len(p.too_few) for p in plans)
    return (
        f"{f'stage {stage!r}: ' if stage else ''}no row is left of {len(plans)} batches in a row, steps "
        f"{plans[0].step} to {plans[-1].step}: left out were {left}; the first because: {first}"
        + (f"; {few:,} sound rows were too few for the ranks" if few else "")
        + "; repair the rows, leave the source out, or give its feed patterns that they can form"
    )
