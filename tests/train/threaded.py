"""Ranks as threads of one process: every collective of a Group, exact and counted, for tests that try many cases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from omni2vec.train.gather import Group
from torch import Tensor


@dataclass
class Table:
    """Where the threads lay what they exchange."""

    size: int
    barrier: threading.Barrier = field(init=False)
    slots: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier, self.slots = threading.Barrier(self.size, timeout=20), [None] * self.size


@dataclass
class Late:
    """What arrives when it is waited for, and not before."""

    found: Tensor
    into: Tensor

    def wait(self) -> None:
        self.into.copy_(self.found)


@dataclass
class Threaded(Group):
    table: Table = field(default_factory=lambda: Table(1))

    def _all(self, kind: str, tensor: Tensor) -> list[Tensor]:
        self._note(kind, tensor)
        self.table.slots[self.rank] = tensor.clone()
        self.table.barrier.wait()
        found = list(self.table.slots)
        self.table.barrier.wait()
        assert kind in ("all_to_all", "all_gather") or len({(t.shape, t.dtype) for t in found}) == 1
        return found

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(reduce(torch.add, self._all("all_reduce", tensor)))

    def max_(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(reduce(torch.maximum, self._all("all_reduce", tensor)))

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._all("all_gather", tensor))

    def reduce_scatter(self, tensor: Tensor, into: Tensor) -> Any:
        total = reduce(torch.add, self._all("reduce_scatter", tensor))
        assert len(tensor) == self.size * len(into) and len(into)
        found = total[self.rank * len(into) : (self.rank + 1) * len(into)].clone()
        for undefined in (tensor, into):
            undefined.fill_(float("nan"))
        return Late(found, into)

    def deal(self, tensor: Tensor, counts: Sequence[int], come: Sequence[int]) -> Tensor:
        rows = self._all("all_to_all", tensor)
        self.table.slots[self.rank] = counts
        self.table.barrier.wait()
        theirs = list(self.table.slots)
        self.table.barrier.wait()
        out = [r.split(list(c))[self.rank] for r, c in zip(rows, theirs, strict=True)]
        assert [len(o) for o in out] == list(come)
        return torch.cat(out)


def on_ranks(size: int, work: Callable[[Group], Any]) -> list[Any]:
    """What `work` gives on each of `size` ranks."""
    table = Table(size)
    groups: list[Group] = [Threaded(rank, size, table=table) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, groups))
