"""What ranks tell each other of the rows that they have counted: JSON, squeezed. No content, no pickle."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

from .order import Address
from .types import Cost, DataError, Example, Item
from .work import Bad, Measured


def pack(rows: Sequence[Measured | Bad] | DataError) -> bytes:
    """The rows in order, or why they cannot be read."""
    told: Any = {"error": str(rows)} if isinstance(rows, DataError) else {"rows": [_told(r) for r in rows]}
    return zlib.compress(json.dumps(told, separators=(",", ":")).encode(), 1)


def unpack(message: bytes) -> list[Measured | Bad] | DataError:
    told = json.loads(zlib.decompress(message))
    return DataError(told["error"]) if "error" in told else [_heard(r) for r in told["rows"]]


def _told(row: Measured | Bad) -> list[Any]:
    if isinstance(row, Bad):
        return [row.source, row.key, row.reason, row.lacking]
    e = row.example
    ids = [e.query.id, [i.id for i in e.positives], [i.id for i in e.negatives], e.known]
    costs = [[c.tokens, c.labels, c.towers, c.shrunk, c.cut, c.left] for c in row.costs]
    # Instructions stay at home: nothing that follows the count reads them.
    return [row.address, e.key, e.source, e.task, *ids, e.label, {k: list(v) for k, v in e.scores.items()}, costs]


def _heard(told: list[Any]) -> Measured | Bad:
    if len(told) == 4:
        return Bad(*told)
    address, key, source, task, query, positives, negatives, known, label, scores, costs = told
    example = Example(
        key,
        source,
        task,
        Item((), query),
        tuple(Item((), i) for i in positives),
        tuple(Item((), i) for i in negatives),
        tuple(known),
        label,
        scores={k: tuple(v) for k, v in scores.items()},
    )
    return Measured(Address(*address), example, tuple(Cost(t, n, tuple(m), *rest) for t, n, m, *rest in costs))
