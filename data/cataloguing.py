"""Keeping the catalogue of a folder fresh: one look at its folders' times when nothing changed, else a new listing.

Beside the shards lies shards.catalogue, the same for equal shards; .catalogue/stamp says when which folders were seen
(in a folder of its own, because a file that is written in a folder changes the folder's time).
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import arrays
from .catalogue import NAME, Catalogue, Columns, Entry, user_cache
from .scan import opened_index
from .types import DataError, digest

STAMP = Path(".catalogue", "stamp")
_STAMPED = {"mtime_ns": "int64"}
_KEY = "omni2vec.stamp"
_SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system: a younger folder may change within its own time
_LOOKED_AT = 64  # shards whose size and time are held against the stamp at every opening
_TOLD = 1000  # shards whose reading is worth a line

log = logging.getLogger(__name__)
Seen = Mapping[str, tuple[int, int]]  # name of a shard -> (bytes, mtime_ns)


@dataclass
class Tree:
    """Every *.tar at or below a folder, in the order of their paths, and every folder's time before it was listed."""

    shards: dict[str, tuple[int, int]] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(root: Path) -> Tree:
        tree = Tree()
        tree._list(str(root), "")
        ordered = sorted(tree.shards.items(), key=lambda x: x[0].split("/"))
        return Tree(dict(ordered), tree.folders)

    def _list(self, folder: str, prefix: str) -> None:
        self.folders[prefix] = Path(folder).stat().st_mtime_ns
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != STAMP.parent.name:
                        self._list(entry.path, f"{prefix}{entry.name}/")
                elif entry.name.endswith(".tar") and entry.is_file():
                    stat = entry.stat()
                    self.shards[f"{prefix}{entry.name}"] = (stat.st_size, stat.st_mtime_ns)


def opened(root: Path, source: str) -> Catalogue:
    """The catalogue of the shards at or below the folder `root`, or of the one tar `root`, built where it is missing or
    stale. Raises DataError without shards, for one that cannot be read, and where two of them give equal keys."""
    if root.is_file():
        return _checked(_one(root), source)
    home = _home(root)
    fresh = _fresh(root, home)
    if fresh is not None:
        return fresh
    tree = _listed(root, source)
    found, seen = _known(root, home, tree)
    for _ in range(3):
        if found is not None and _agrees(found, seen, tree):
            _stamp(home, found, tree)
            return found
        found, seen = _written(_checked(_built(root, found, seen, tree), source), home), tree.shards
        tree = _listed(root, source)  # building an index, and writing the catalogue, changes a folder's time
    assert found is not None
    return found  # shards come and go while we look


def write(root: Path) -> None:
    """The catalogue beside shards that were just written. What is wrong with others there is told at their opening."""
    tree = Tree.of(root)
    try:
        found, seen = _known(root, root, tree)
        _checked(_built(root, found, seen, tree), root.name).write(root / NAME)
    except DataError as error:
        log.warning("%s: no catalogue written: %s", root, error)


def _listed(root: Path, source: str) -> Tree:
    tree = Tree.of(root) if root.is_dir() else Tree()
    if not tree.shards:
        raise DataError(f"source {source!r}: no *.tar under {root}; pack some, or correct the path")
    return tree


def _home(root: Path) -> Path:
    """Where the catalogue is kept: with the shards, or, where they are read-only, under the user's cache."""
    return root if os.access(root, os.W_OK) else user_cache("catalogues") / digest(str(root.absolute()))


def _fresh(root: Path, home: Path) -> Catalogue | None:
    """The catalogue, if no folder changed since the stamp, nor any of the shards that are looked at."""
    try:
        about, stamp = arrays.read(home / STAMP, _STAMPED, _KEY)
        if any((root / f).stat().st_mtime_ns != time for f, time in about["folders"].items()):
            return None
        found = next(c for c in _catalogues(root, home) if c.content == about["content"])
        for i in np.unique(np.linspace(0, len(found) - 1, _LOOKED_AT).astype(np.int64)).tolist():
            stat = found.path(i).stat()
            if (stat.st_size, stat.st_mtime_ns) != (int(found.bytes[i]), int(stamp["mtime_ns"][i])):
                return None
    except (DataError, OSError, KeyError, IndexError, StopIteration):
        return None
    return found


def _catalogues(root: Path, home: Path) -> list[Catalogue]:
    found = list[Catalogue]()
    for file in dict.fromkeys((home / NAME, root / NAME)):
        try:
            found.append(Catalogue.read(file, root))
        except (DataError, OSError):
            continue
    return found


def _known(root: Path, home: Path, tree: Tree) -> tuple[Catalogue | None, Seen]:
    """A catalogue that may be stale, with what its shards looked like. Without a stamp they are believed where they are
    no younger than it: shards are written first."""
    for found in _catalogues(root, home):
        assert found.file is not None
        times = np.full(len(found), -1)
        try:
            about, stamp = arrays.read(home / STAMP, _STAMPED, _KEY)
            if about["content"] == found.content:
                times = stamp["mtime_ns"]
        except (DataError, OSError, KeyError):
            pass
        names = found.names()
        if times[0] < 0:
            latest = found.file.stat().st_mtime_ns
            times = np.array([m if (m := tree.shards.get(n, (0, -1))[1]) <= latest else -1 for n in names])
        return found, dict(zip(names, zip(found.bytes.tolist(), times.tolist(), strict=True), strict=True))
    return None, {}


def _agrees(found: Catalogue, seen: Seen, tree: Tree) -> bool:
    return found.names() == list(tree.shards) and all(seen[name] == at for name, at in tree.shards.items())


def _built(root: Path, found: Catalogue | None, seen: Seen, tree: Tree) -> Catalogue:
    """Of the tree: entries of shards that look as they did are kept, the others are read."""
    places = {name: i for i, name in enumerate(found.names())} if found else {}
    kept = {name for name, at in tree.shards.items() if name in places and seen.get(name) == at}
    missing = len(tree.shards) - len(kept)
    if missing >= _TOLD:
        log.info("%s: cataloguing %s shards, once", root, f"{missing:,}")
    columns, read = Columns(), 0
    for name in tree.shards:
        if found is not None and name in kept:
            columns.add(found.entry(places[name]))
            continue
        columns.add(Entry.of(name, opened_index(root / name)))
        read += 1
        if read % (10 * _TOLD) == 0:
            log.info("%s: catalogued %s of %s shards", root, f"{read:,}", f"{missing:,}")
    return Catalogue.of(root, columns)


def _one(path: Path) -> Catalogue:
    columns = Columns()
    columns.add(Entry.of(path.name, opened_index(path)))
    return Catalogue.of(path.parent, columns)


def _checked(catalogue: Catalogue, source: str) -> Catalogue:
    twins = catalogue.twins()
    if twins is not None:
        first, second = (catalogue.path(i) for i in twins)
        raise DataError(
            f"source {source!r}: {second} and {first} give equal keys ({opened_index(first).key(0)!r}); "
            f"pack one of them with another prefix or source name"
        )
    return catalogue


def _written(catalogue: Catalogue, home: Path) -> Catalogue:
    """Where it cannot be kept, it serves from memory, and the next opening builds it again."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        return catalogue.write(home / NAME)
    except OSError as error:
        log.warning("%s: the catalogue cannot be kept (%s), so every opening reads all shards", home, error)
        return catalogue


def _stamp(home: Path, catalogue: Catalogue, tree: Tree) -> None:
    """Notes down the folders' times, if they are old enough that a later change would show."""
    latest = max(tree.folders.values())
    if abs(time.time_ns() - latest) < _SETTLED_NS:
        return
    try:
        (home / STAMP).parent.mkdir(parents=True, exist_ok=True)
        now = home / STAMP.parent / f"now.{secrets.token_hex(6)}"
        now.touch()  # the clock of the file system, which need not be ours
        settled = now.stat().st_mtime_ns - latest > _SETTLED_NS
        now.unlink(missing_ok=True)
        if settled:
            times = {"mtime_ns": np.array([time for _, time in tree.shards.values()], np.int64)}
            arrays.write(home / STAMP, times, _KEY, {"content": catalogue.content, "folders": tree.folders})
    except OSError as error:
        log.warning("%s: the catalogue's stamp cannot be kept (%s), so every opening lists all shards", home, error)
