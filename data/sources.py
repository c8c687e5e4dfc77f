"""Where rows come from: frozen values in a recipe that open to Rows with random access."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from .shards import Shard
from .types import DataError, Example, Step, Where, digest

_OPEN_SHARDS = 64  # kept open at a time: each holds two file handles, of which a process has 1,024


@dataclass(frozen=True)
class Shards:
    """Every *.tar under `folder` of a step's output or of a path, in the order of their names.

    `name` is what objectives, mixtures and reports call it; by default the last word of `folder`, or of the path.
    """

    at: Step | str
    folder: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            last = self.folder or (self.at if isinstance(self.at, str) else self.at.name)
            object.__setattr__(self, "name", Path(last).name.removesuffix(".tar"))

    def open(self, where: Where) -> ShardRows:
        root = (Path(self.at) if isinstance(self.at, str) else where(self.at)) / self.folder
        paths = [root] if root.is_file() else sorted(root.rglob("*.tar"))
        if not paths:
            raise DataError(f"source {self.name!r}: no *.tar under {root}; pack some, or correct the path")
        return ShardRows.of(self.name, paths)


@dataclass
class ShardRows:
    """Rows over many shards, of which only a few are open at a time. Pickled to workers, where each opens its own."""

    name: str
    digest: str
    paths: tuple[Path, ...]
    ends: tuple[int, ...]  # running total of rows at the end of each shard
    opened: OrderedDict[int, Shard] = field(default_factory=OrderedDict, repr=False, compare=False)

    @staticmethod
    def of(name: str, paths: list[Path]) -> ShardRows:
        lengths, digests, first_keys = [], [], dict[tuple[str, ...], Path]()
        for path in paths:
            shard = Shard(path)
            lengths.append(len(shard))
            digests.append(shard.digest)
            first = (*sorted(shard.index.about["sources"]), shard.index.key(0))
            if first in first_keys:
                raise DataError(
                    f"source {name!r}: {path} and {first_keys[first]} give equal keys ({first[-1]!r}); "
                    f"pack one of them with another prefix or source name"
                )
            first_keys[first] = path
        return ShardRows(name, digest("shards", name, *digests), tuple(paths), tuple(accumulate(lengths)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"source {self.name!r}: row {index} of {len(self)}")
        i = bisect_right(self.ends, index)
        return self._shard(i).example(index - (self.ends[i - 1] if i else 0), self.name)

    def _shard(self, i: int) -> Shard:
        if i not in self.opened:
            if len(self.opened) >= _OPEN_SHARDS:
                self.opened.popitem(last=False)
            self.opened[i] = Shard(self.paths[i])
        self.opened.move_to_end(i)
        return self.opened[i]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "opened": OrderedDict()}
