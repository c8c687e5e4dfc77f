"""Where rows come from: frozen values in a recipe that open to Rows with random access.

A row's key comes from the data, so it stays the same under every source that serves the row; `Example.source` is the
name of the source that was opened.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .addresses import is_remote
from .catalogue import user_cache
from .cataloguing import opened
from .counter import choose
from .index import index_path
from .mapping import examples
from .opened import JoinedRows, ShardRows, picked
from .remote import Remote
from .shards import write_shards
from .tables import files
from .types import DataError, Example, Rows, Source, Step, Where, digest

_LAYOUT = 1  # of the cache beside a table: another number, another folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shards:
    """Every *.tar under `folder` of a step's output or of a path, in the order of their names.

    `name` is what objectives, mixtures and reports call it; by default the last word of `folder`, or of the path.

    `at` may be a URL or "pipe:command" (docs/shards.md): "https://host/set/shard-{000000..000999}.tar", the URL of a
    folder with a catalogue, or a command with {} where it takes the name of a file, and `folder` for the names. Shards
    are then kept in the folder `cache` (by default the user's), which all such sources share, up to `cache_gb` (1e9
    bytes each).
    """

    at: Step | str
    folder: str = ""
    name: str = ""
    cache: str = field(default="", compare=False)
    cache_gb: float = field(default=50.0, compare=False)

    def __post_init__(self) -> None:
        if not self.name and (remote := self._remote()):
            _name(self, remote.name)
        elif not self.name:
            last = self.folder or (self.at if isinstance(self.at, str) else self.at.name)
            _name(self, Path(last).name.removesuffix(".tar"))

    def _remote(self) -> Remote | None:
        if not isinstance(self.at, str) or not is_remote(self.at):
            return None
        return Remote.of(self.at, self.folder, self.cache, self.cache_gb)

    def open(self, where: Where) -> Rows:
        remote = self._remote()
        if remote is not None:
            return ShardRows(self.name, remote.opened(self.name), remote=remote)
        root = (Path(self.at) if isinstance(self.at, str) else where(self.at)) / self.folder
        return ShardRows(self.name, opened(root, self.name))


@dataclass(frozen=True)
class Table:
    """A JSON lines, CSV or Parquet file, or a folder of them, named directly in a recipe.

    columns: which column is what (docs/your_data.md); none for JSON lines of whole rows. media: the folder of the media
    paths, by default the table's own. At the first opening an index is built beside the table (or, where that folder is
    read-only, under the user's cache): it holds the rows, the media's sizes and digests, and copies of media that stand
    inside the table; media files stay where they are. It is built again when the table's size or time changes; delete
    it when media change under their names.
    """

    path: str
    name: str = ""
    task: str = "retrieval"
    media: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            _name(self, Path(self.path).stem)

    def open(self, where: Where) -> Rows:
        path = Path(self.path)
        tables = files(path)
        folder = Path(self.media) if self.media else (path if path.is_dir() else path.parent)
        settings = {"layout": _LAYOUT, **{f: getattr(self, f) for f in ("name", "task", "media")}}
        settings["columns"] = dict(self.columns)
        stamp = {str(t): [t.stat().st_size, t.stat().st_mtime_ns] for t in tables}
        beside = path.with_name(f"{path.name}.index")
        if not os.access(path.parent, os.W_OK):
            beside = user_cache("tables") / digest(str(path.absolute()))
        cache = beside / digest(json.dumps(settings, sort_keys=True))[:16]
        if not _fresh(cache, stamp):
            log.info("source %r: indexing %s", self.name, path)
            self._build(cache, folder, stamp)
        return ShardRows(self.name, opened(cache, self.name), str(folder.absolute()))

    def _build(self, cache: Path, folder: Path, stamp: Mapping[str, object]) -> None:
        """Fills the cache, aside and renamed; where another process was quicker, its result is as good."""
        temporary = cache.with_name(f".{cache.name}.{os.getpid()}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        path = Path(self.path)
        rows = examples(path, columns=self.columns, media=str(folder), task=self.task, source=self.name)
        try:
            write_shards(rows, temporary, prefix=path.stem, outside=str(folder.absolute()))
            (temporary / "stamp.json").write_text(json.dumps(stamp))
            shutil.rmtree(cache, ignore_errors=True)
            temporary.rename(cache)
        except OSError:
            if not _fresh(cache, stamp):
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class Take:
    """`count` rows of a source, drawn by `seed` and always the same; all of them if there are no more."""

    source: Source
    count: int
    seed: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DataError(f"take from {self.source.name!r}: count={self.count}, expected 1 or more")
        _name(self, self.name or self.source.name)

    def open(self, where: Where) -> Rows:
        rows = self.source.open(where)
        return picked(self.name, rows, choose(len(rows), self.count, self.seed, "take"))


@dataclass(frozen=True)
class Rest:
    """The rows that Take(source, count, seed) leaves: train on these, and choose settings on those."""

    source: Source
    count: int
    seed: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        _name(self, self.name or self.source.name)

    def open(self, where: Where) -> Rows:
        rows = self.source.open(where)
        kept = np.delete(np.arange(len(rows)), choose(len(rows), self.count, self.seed, "take"))
        if not len(kept):
            raise DataError(f"source {self.name!r}: count={self.count} of its {len(rows)} rows leaves none; lower it")
        return picked(self.name, rows, kept)


@dataclass(frozen=True)
class AtLeast:
    """The positives of a source whose score is `value` or more; rows that keep none are left out.

    So that graded pairs enter a contrastive loss only where they are alike: AtLeast(sts, "label", 4.0).
    """

    source: Source
    score: str = "label"
    value: float = 4.0
    name: str = ""

    def __post_init__(self) -> None:
        _name(self, self.name or self.source.name)

    def open(self, where: Where) -> Rows:
        rows = self.source.open(where)
        kept = [i for i in range(len(rows)) if max(self._right(rows[i])) >= self.value]
        if not kept:
            raise DataError(f"source {self.name!r}: no row has a positive with {self.score!r} of {self.value} or more")
        return picked(self.name, rows, kept, f"{self.score} {self.value!r}", self.cut)

    def _right(self, example: Example) -> tuple[float, ...]:
        if self.score not in example.scores:
            known = ", ".join(sorted(example.scores)) or "none"
            raise DataError(f"{example.key}: no score {self.score!r} to hold against {self.value}; it has {known}")
        return example.scores[self.score][: len(example.positives)]

    def cut(self, example: Example) -> Example:
        """The example with only the positives that count, and their scores."""
        right = [i for i, s in enumerate(self._right(example)) if s >= self.value]
        places = [*right, *range(len(example.positives), len(example.positives) + len(example.negatives))]
        return replace(
            example,
            positives=tuple(example.positives[i] for i in right),
            scores={name: tuple(values[i] for i in places) for name, values in example.scores.items()},
        )


@dataclass(frozen=True)
class Concat:
    """The rows of several sources, one behind the other, as one."""

    sources: tuple[Source, ...]
    name: str

    def open(self, where: Where) -> Rows:
        if not self.sources:
            raise DataError(f"source {self.name!r}: nothing to join; name one source or more")
        parts = tuple(source.open(where) for source in self.sources)
        return JoinedRows(self.name, parts)


def _name(source: object, name: str) -> None:
    """Settles a default name when the frozen value is made, so that a record shows it."""
    object.__setattr__(source, "name", name)


def _fresh(cache: Path, stamp: Mapping[str, object]) -> bool:
    """Whether the cache was built from tables of these sizes and times, and is whole."""
    try:
        whole = all(index_path(tar).exists() for tar in cache.glob("*.tar"))
        return whole and bool(json.loads((cache / "stamp.json").read_text()) == stamp)
    except (OSError, ValueError):
        return False


def below(folder: str | Path) -> tuple[Shards, ...]:
    """One source for every folder of shards at or below `folder`, named by its path. Raises DataError without any."""
    top = Path(folder)
    found = sorted({p.parent for p in top.glob("**/*.tar")})
    if not found:
        raise DataError(f"{top}: no shards (*.tar) below it; make them with `omni2vec pack`, see docs/your_data.md")
    return tuple(Shards(str(f), name=f.relative_to(top).as_posix() if f != top else top.name) for f in found)
