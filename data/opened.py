"""What sources open to: rows over many shards, some rows of others, rows behind rows.

Each has `ends`, (b,) int64, the running total of rows at the end of each block: rows that one shard serves. An order
that goes from block to block has few shards open, however many there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from .cache import Held
from .catalogue import Catalogue
from .remote import Remote
from .shards import Shard
from .types import DataError, Example, Rows, digest

_OPEN_SHARDS = 64  # kept open at a time: each holds two file handles, of which a process has 1,024

Ends = NDArray[np.int64]


@dataclass(eq=False)
class ShardRows:
    """Rows over the shards of a catalogue, of which only a few are open at a time. Pickled to workers by the path of
    the catalogue's file; each opens its own shards. remote: where they come from, if they are not here."""

    name: str
    catalogue: Catalogue
    outside: str = ""  # media folder of a table's cache
    remote: Remote | None = None
    opened: OrderedDict[int, Shard] = field(default_factory=OrderedDict, repr=False)
    held: WeakValueDictionary[int, Held] = field(default_factory=WeakValueDictionary, repr=False)

    @cached_property
    def digest(self) -> str:
        return self.catalogue.digest(self.name)

    @property
    def ends(self) -> Ends:
        return self.catalogue.ends

    @property
    def fields(self) -> Mapping[str, int]:
        """Rows by combination of fields ("image+title")."""
        return self.catalogue.fields

    def __len__(self) -> int:
        return self.catalogue.rows

    def __getitem__(self, index: int) -> Example:
        i, at = _place(self.name, self.ends, index)
        if self.remote is None:
            return self._shard(i).example(at, self.name)
        held = self._hold(self.remote, i)
        return self._shard(i).example(at, self.name, held)

    def _hold(self, remote: Remote, i: int) -> Held:
        """The shard in the cache, where it stays while an example of it lives."""
        held = self.held.get(i)
        if held is None:
            told = self.catalogue.entry(i)
            held = remote.again(told) if i in self.opened else None
            if held is None:
                self.opened.pop(i, None)
                held = remote.held(told)
                for k in [k for k, shard in self.opened.items() if not shard.path.exists()]:
                    del self.opened[k]  # what made room for it takes disk as long as it is open
            self.held[i] = held
        return held

    def _shard(self, i: int) -> Shard:
        if i not in self.opened:
            if len(self.opened) >= _OPEN_SHARDS:
                self.opened.popitem(last=False)
            self.opened[i] = self._open(i)
        self.opened.move_to_end(i)
        return self.opened[i]

    def _open(self, i: int) -> Shard:
        shard = Shard(self.held[i] if self.remote else self.catalogue.path(i), self.outside)
        told = self.catalogue.entry(i)
        if (len(shard), shard.digest) != (told.rows, told.tar_digest):
            raise DataError(
                f"{shard.path}: {len(shard):,} rows of digest {shard.digest}, but the catalogue that source "
                f"{self.name!r} was opened by has {told.rows:,} rows of {told.tar_digest}; it was packed anew in its "
                f"place. Delete {self.catalogue.file or 'its index'} and start again, or bring the old shard back"
            )
        return shard

    def __reduce__(self) -> tuple[type[ShardRows], tuple[object, ...]]:
        return ShardRows, (self.name, self.catalogue, self.outside, self.remote)


@dataclass(frozen=True)
class PickedRows:
    """Some rows of others, in ascending order. cut: what is kept of each."""

    name: str
    digest: str
    rows: Rows
    picked: NDArray[np.int64]
    cut: Callable[[Example], Example] | None = None

    @cached_property
    def ends(self) -> Ends:
        """Of the blocks that a row is picked of."""
        ends = np.unique(np.searchsorted(self.picked, ends_of(self.rows)))
        return ends[ends > 0]

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self.picked):
            raise IndexError(f"source {self.name!r}: row {index} of {len(self.picked)}")
        example = replace(self.rows[int(self.picked[index])], source=self.name)
        return self.cut(example) if self.cut else example

    def __getstate__(self) -> dict[str, object]:
        return _own(self)


def picked(
    name: str,
    rows: Rows,
    places: Sequence[int] | NDArray[np.int64],
    rule: str = "",
    cut: Callable[[Example], Example] | None = None,
) -> PickedRows:
    """`rule` names what `cut` does, for the digest."""
    at = np.array(places, dtype=np.int64)
    return PickedRows(name, digest("picked", name, rows.digest, rule, at.tobytes()), rows, at, cut)


@dataclass(frozen=True)
class JoinedRows:
    """Rows behind rows."""

    name: str
    parts: tuple[Rows, ...]

    @cached_property
    def digest(self) -> str:
        return digest("joined", self.name, *(rows.digest for rows in self.parts))

    @cached_property
    def ends(self) -> Ends:
        return np.concatenate([before + ends_of(p) for before, p in zip(self._before, self.parts, strict=True)])

    @property
    def fields(self) -> Mapping[str, int] | None:
        """Rows by combination of fields; None where a part does not count them."""
        told = [getattr(rows, "fields", None) for rows in self.parts]
        counted = [t for t in told if t is not None]
        if len(counted) < len(told):
            return None
        return {word: sum(t.get(word, 0) for t in counted) for word in sorted({w for t in counted for w in t})}

    @cached_property
    def _ends(self) -> Ends:
        return np.cumsum([len(rows) for rows in self.parts], dtype=np.int64)

    @property
    def _before(self) -> Ends:
        return np.concatenate([np.zeros(1, np.int64), self._ends[:-1]])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        i, at = _place(self.name, self._ends, index)
        return replace(self.parts[i][at], source=self.name)

    def __getstate__(self) -> dict[str, object]:
        return _own(self)


def ends_of(rows: Rows) -> Ends:
    """(b,) where the blocks of any rows end: one block where they do not say."""
    told = getattr(rows, "ends", None)
    return np.array([len(rows)], np.int64) if told is None else np.asarray(told, np.int64)


def _place(name: str, ends: Ends, index: int) -> tuple[int, int]:
    """(which part, which row of it) of a row, where the parts end at `ends`. Raises IndexError outside."""
    if not 0 <= index < ends[-1]:
        raise IndexError(f"source {name!r}: row {index} of {ends[-1]}")
    i = int(ends.searchsorted(index, side="right"))
    return i, index - (int(ends[i - 1]) if i else 0)


def _own(value: Any) -> dict[str, object]:
    """The fields of a frozen value, without what it worked out: workers work it out again, or never."""
    return {f.name: getattr(value, f.name) for f in fields(value)}
