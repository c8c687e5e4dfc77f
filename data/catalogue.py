"""The catalogue of a folder of shards: which there are, how many rows each has, and its digest, in one mapped file.

A source is opened by its catalogue alone, so that a hundred thousand shards open as fast as one; a shard that is read
later is held against it. data/cataloguing.py keeps it fresh.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import arrays
from .index import Index
from .types import DataError, digest

VERSION = 1
NAME = "shards.catalogue"
KEY = "omni2vec.shards"

# Every array of the file with its type; n shards, w distinct words, c counts.
ARRAYS: dict[str, str] = {
    "row_end": "int64",  # (n,) running total of rows
    "bytes": "int64",  # (n,) of the tar
    "name_end": "int64",  # (n,) where each shard's path from the folder ends in name_text
    "name_text": "uint8",
    "tar_digest": "uint8",  # (n, 16) of all its bytes, as its index has it
    "tar_quick": "uint8",  # (n, 16) of its size and two ends, as its index has it
    "first": "uint8",  # (n, 16) of its sources and first key: equal ones give equal keys
    "count_end": "int64",  # (n,) where each shard's counts end in the two arrays below
    "count_word": "int32",  # (c,) which word is counted
    "count": "int64",  # (c,) rows
    "word_end": "int64",  # (w,) where each word ends in word_text
    "word_text": "uint8",  # "source:NAME", "task:NAME", "fields:image+title"
}
_HEX = 32  # digits of a digest


@dataclass(frozen=True)
class Entry:
    """One shard: `name` is its path from the folder, `counts` are rows by word."""

    name: str
    rows: int
    bytes: int
    tar_digest: str
    tar_quick: str
    first: str
    counts: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(name: str, index: Index) -> Entry:
        about = index.about
        counts = {
            f"{kind}:{word}": int(count)
            for kind, known in (("source", about["sources"]), ("task", about["tasks"]), ("fields", index.fields))
            for word, count in sorted(known.items())
        }
        return Entry(
            name,
            len(index),
            int(about["tar_bytes"]),
            about["tar_digest"],
            about["tar_quick"],
            digest(*sorted(about["sources"]), index.key(0)),
            counts,
        )


@dataclass
class Columns:
    """Collects entries, in the order of the shards."""

    numbers: dict[str, list[int]] = field(default_factory=lambda: {n: [] for n in ARRAYS if _listed(n)})
    texts: dict[str, bytearray] = field(default_factory=lambda: {n: bytearray() for n in ARRAYS if not _listed(n)})
    words: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    def add(self, entry: Entry) -> None:
        numbers, texts = self.numbers, self.texts
        self.rows += entry.rows
        for word, count in entry.counts.items():
            numbers["count_word"].append(self.words.setdefault(word, len(self.words)))
            numbers["count"].append(count)
        texts["name_text"] += entry.name.encode(errors="surrogateescape")
        for name in ("tar_digest", "tar_quick", "first"):
            texts[name] += bytes.fromhex(getattr(entry, name))
        for name, value in (
            ("row_end", self.rows),
            ("bytes", entry.bytes),
            ("name_end", len(texts["name_text"])),
            ("count_end", len(numbers["count"])),
        ):
            numbers[name].append(value)

    def arrays(self) -> dict[str, NDArray[Any]]:
        words = [word.encode() for word in self.words]
        numbers = {**self.numbers, "word_end": np.cumsum([len(w) for w in words], dtype=np.int64)}
        found = {name: np.array(values, dtype=ARRAYS[name]) for name, values in numbers.items()}
        for name, text in {**self.texts, "word_text": b"".join(words)}.items():
            flat = np.frombuffer(bytes(text), np.uint8)
            found[name] = flat if name.endswith("_text") else flat.reshape(-1, _HEX // 2)
        return found


def _listed(name: str) -> bool:
    return not name.endswith("_text") and name not in ("tar_digest", "tar_quick", "first")


class Catalogue:
    """The shards of the folder `root`, one after the other. `file`: where its arrays are mapped from, and all that is
    pickled; without one (a single tar), they are pickled themselves."""

    def __init__(self, root: Path, arrays: Mapping[str, NDArray[Any]], content: str, file: Path | None = None) -> None:
        self.root, self.arrays, self.content, self.file = root, arrays, content, file

    @staticmethod
    def of(root: Path, columns: Columns) -> Catalogue:
        found = columns.arrays()
        return Catalogue(root, found, digest(*(found[name].tobytes() for name in ARRAYS)))

    @staticmethod
    def read(file: Path, root: Path) -> Catalogue:
        """Raises DataError where the file is no whole catalogue of this version."""
        about, found = arrays.read(file, ARRAYS, KEY)
        n, first = len(found["row_end"]), ("name_end", "bytes", "tar_digest", "tar_quick", "first", "count_end")
        if about.get("version") != VERSION or not n or any(len(found[name]) != n for name in first):
            raise DataError(f"{file}: is not whole, or of another version; delete it, it is built again")
        return Catalogue(root, found, str(about["content"]), file)

    def write(self, file: Path) -> Catalogue:
        """Aside and renamed; the one that is read back."""
        about = {"version": VERSION, "content": self.content, "shards": len(self), "rows": self.rows}
        arrays.write(file, self.arrays, KEY, about)
        return Catalogue.read(file, self.root)

    def __len__(self) -> int:
        return len(self.arrays["row_end"])

    def __getstate__(self) -> dict[str, Any]:
        kept = {"root": self.root, "content": self.content, "file": self.file}
        return kept if self.file else {**kept, "arrays": dict(self.arrays)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.file is None:
            return
        found = Catalogue.read(self.file, self.root)
        if found.content != self.content:
            raise DataError(
                f"{self.file}: lists other shards than when the source was opened; were shards added or packed anew "
                f"meanwhile? Start again"
            )
        self.arrays = found.arrays

    @property
    def rows(self) -> int:
        return int(self.ends[-1])

    @property
    def ends(self) -> NDArray[np.int64]:
        """(n,) running total of rows at the end of each shard."""
        return self.arrays["row_end"]

    @property
    def bytes(self) -> NDArray[np.int64]:
        """(n,) of each tar."""
        return self.arrays["bytes"]

    def name(self, i: int) -> str:
        """The path of shard i from the folder."""
        return _text(self.arrays["name_end"], self.arrays["name_text"], i)

    def path(self, i: int) -> Path:
        return self.root / self.name(i)

    def names(self) -> list[str]:
        """Of all shards: a Python object each, for building only."""
        text, at = self.arrays["name_text"].tobytes(), [0, *self.arrays["name_end"].tolist()]
        return [text[first:last].decode(errors="surrogateescape") for first, last in pairwise(at)]

    def tar_digest(self, i: int) -> str:
        return str(self.arrays["tar_digest"][i].tobytes().hex())

    def entry(self, i: int) -> Entry:
        a = self.arrays
        first = int(a["count_end"][i - 1]) if i else 0
        here = slice(first, int(a["count_end"][i]))
        pairs = zip(a["count_word"][here].tolist(), a["count"][here].tolist(), strict=True)
        return Entry(
            self.name(i),
            int(self.ends[i]) - (int(self.ends[i - 1]) if i else 0),
            int(a["bytes"][i]),
            a["tar_digest"][i].tobytes().hex(),
            a["tar_quick"][i].tobytes().hex(),
            a["first"][i].tobytes().hex(),
            {self._words[word]: count for word, count in pairs},
        )

    def digest(self, name: str) -> str:
        """digest("shards", name, the digest of each tar), in milliseconds for 100,000 of them."""
        hexed = np.frombuffer(self.arrays["tar_digest"].tobytes().hex().encode(), np.uint8).reshape(-1, _HEX)
        framed = np.empty((len(self), 8 + _HEX), np.uint8)
        framed[:, :8] = np.frombuffer(_HEX.to_bytes(8, "little"), np.uint8)
        framed[:, 8:] = hexed
        h = blake2b(digest_size=16)
        for word in ("shards", name):
            raw = word.encode()
            h.update(len(raw).to_bytes(8, "little") + raw)
        h.update(framed.tobytes())
        return h.hexdigest()

    def counts(self, kind: str) -> dict[str, int]:
        """Rows by source, task or fields, over all shards. kind: "source", "task" or "fields"."""
        totals = np.bincount(self.arrays["count_word"], self.arrays["count"], len(self._words)).astype(np.int64)
        named = ((word.partition(":"), int(total)) for word, total in zip(self._words, totals, strict=True))
        return {word[2]: total for word, total in named if word[0] == kind}

    @property
    def fields(self) -> Mapping[str, int]:
        """Rows by combination of fields ("image+title"), over all shards."""
        return self.counts("fields")

    @cached_property
    def _words(self) -> tuple[str, ...]:
        a = self.arrays
        return tuple(_text(a["word_end"], a["word_text"], i) for i in range(len(a["word_end"])))

    def twins(self) -> tuple[int, int] | None:
        """Two shards that give equal keys, if there are any."""
        flat = np.ascontiguousarray(self.arrays["first"]).view("V16").ravel()
        order = np.argsort(flat.view([("high", ">u8"), ("low", ">u8")]), kind="stable")
        same = np.flatnonzero(flat[order[1:]] == flat[order[:-1]])
        return (int(order[same[0]]), int(order[same[0] + 1])) if len(same) else None


def _text(ends: NDArray[Any], text: NDArray[Any], i: int) -> str:
    first = int(ends[i - 1]) if i else 0
    return str(text[first : int(ends[i])].tobytes().decode(errors="surrogateescape"))


def user_cache(kind: str) -> Path:
    """The folder of one kind of thing under the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omni2vec" / kind
