"""Every distinct item of some tasks to one vector: equal items under one side and instruction are embedded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.types import Audio, Image, Item, Side, Text, Video
from ..model.types import Encoder
from .types import Query, Task

Role = tuple[Side, str]  # side and instruction
Identity = tuple[object, ...]


@dataclass(frozen=True)
class Vectors:
    """Vectors by role: one table (n, D) for each, and the row of each item in it."""

    tables: dict[Role, Tensor]
    rows: dict[Role, dict[Identity, int]]

    def queries(self, task: Task) -> Tensor:
        """(Q, D), in the order of the task's queries."""
        return torch.stack([self._vector(_role(task, q), q.item) for q in task.queries])

    def candidates(self, task: Task) -> Tensor:
        """(N, D), in pool order."""
        role = _target(task)
        rows = self.rows[role]
        return self.tables[role][[rows[_identity(item)] for item in task.candidates.values()]]

    def _vector(self, role: Role, item: Item) -> Tensor:
        return self.tables[role][self.rows[role][_identity(item)]]


def embed(encoder: Encoder, tasks: Sequence[Task], progress: bool = True) -> Vectors:
    """The vectors of all queries and candidates of all tasks, each distinct one embedded once."""
    items: dict[Role, dict[Identity, Item]] = {}
    for role, item in _wanted(tasks):
        items.setdefault(role, {}).setdefault(_identity(item), item)
    tables, rows = {}, {}
    for (side, instruction), distinct in items.items():
        label = f"{len(distinct):,} {'queries' if side == 'query' else 'candidates'}" if progress else ""
        table = encoder.encode_items(list(distinct.values()), side=side, instruction=instruction, progress=label)
        if table.ndim != 2 or len(table) != len(distinct):
            raise ValueError(f"encode_items gave {tuple(table.shape)} for {len(distinct)} items, expected one row each")
        tables[side, instruction] = table.float().cpu()
        rows[side, instruction] = {identity: i for i, identity in enumerate(distinct)}
    return Vectors(tables, rows)


def _wanted(tasks: Sequence[Task]) -> Iterator[tuple[Role, Item]]:
    for task in tasks:
        for q in task.queries:
            yield _role(task, q), q.item
        for item in task.candidates.values():
            yield _target(task), item


def _role(task: Task, query: Query) -> Role:
    return "query", task.instruction if query.instruction is None else query.instruction


def _target(task: Task) -> Role:
    return "target", task.target_instruction


def _identity(item: Item) -> Identity:
    """Its id with its texts and sizes: an id given by hand ("7") may name two things in two sources."""
    return (item.id, *(_outline(p) for p in item.parts))


def _outline(part: object) -> object:
    match part:
        case Text(text):
            return text
        case Image(blob, width, height) | Video(blob, width, height):
            return type(part).__name__, width, height, blob.length if blob.path else len(blob.data)
        case Audio(blob, seconds, rate):
            return seconds, rate, blob.length if blob.path else len(blob.data)
        case _:
            return part
