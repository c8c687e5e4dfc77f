"""The index beside each shard: where every JSON and medium lies and how large each medium is, as a safetensors file.

Arrays are mapped, never loaded: a million rows cost page cache, not memory. docs/shards.md lists them.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import checked, write
from .types import Audio, Blob, DataError, Image, Part, Video, digest

VERSION = 1
KINDS = ("image", "video", "audio")  # a medium's kind is stored as its place in here
SUFFIX = ".index"
PLAIN = "query+target"  # the fields of a row that names none
_EDGE = 1 << 16  # bytes at either end of a tar that its quick digest reads

# Every array of the file with its type; n samples, m media.
ARRAYS: dict[str, str] = {
    "json_offset": "int64",  # (n,)
    "json_length": "int64",  # (n,)
    "key_end": "int64",  # (n,) where each key ends in key_text
    "key_text": "uint8",
    "media_end": "int64",  # (n,) where each sample's media end in the arrays below
    "medium_kind": "uint8",  # (m,) 0 image, 1 video, 2 audio
    "medium_offset": "int64",  # (m,) -1: a file of that name outside the tar (only beside tables, never in shards)
    "medium_length": "int64",  # (m,)
    "medium_width": "int32",  # (m,) pixels as displayed; 0 for a sound
    "medium_height": "int32",  # (m,)
    "medium_frames": "int32",  # (m,) 1 for a picture, 0 for a sound
    "medium_seconds": "float64",  # (m,) 0 for a picture
    "medium_rate": "int32",  # (m,) Hz; 0 but for a sound
    "name_end": "int64",  # (m,) where each name ("query.0.jpg") ends in name_text
    "name_text": "uint8",
}
KEY = "omni2vec.shard"


def index_path(tar: Path) -> Path:
    return tar.with_name(tar.name + SUFFIX)


def sizes(part: Part) -> tuple[int, int, int, int, float, int]:
    """(kind, width, height, frames, seconds, rate) of a medium, as the index has them."""
    match part:
        case Image(_, width, height):
            return 0, width, height, 1, 0.0, 0
        case Video(_, width, height, frames, seconds):
            return 1, width, height, frames, seconds, 0
        case Audio(_, seconds, rate):
            return 2, 0, 0, 0, seconds, rate
    raise TypeError(f"{type(part).__name__} is no medium")


def quick_digest(path: Path) -> str:
    """Of a tar's size and its two ends: tells a stale index at every opening, for one page of reading."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_EDGE)
        file.seek(max(0, size - _EDGE))
        return digest(str(size), head, file.read(_EDGE))


def full_digest(path: Path) -> str:
    """BLAKE2b of every byte of a file."""
    h = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            h.update(block)
    return h.hexdigest()


@dataclass
class Builder:
    """Collects the arrays while a tar is written or walked."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in ARRAYS})
    texts: dict[str, bytearray] = field(default_factory=lambda: {"key": bytearray(), "name": bytearray()})
    sources: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    fields: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["json_offset"])

    def add(
        self,
        key: str,
        source: str,
        task: str,
        json_at: tuple[int, int],
        media: Sequence[tuple[str, Part, int, int]],
        fields: Iterable[str] = (),
    ) -> None:
        """One sample: (offset, length) of its JSON, (name, medium, offset, length) of each medium, the fields that
        patterns find in it."""
        for name, part, offset, length in media:
            kind, width, height, frames, seconds, rate = sizes(part)
            values = (kind, offset, length, width, height, frames, seconds, rate)
            for column, value in zip(list(ARRAYS)[5:13], values, strict=True):
                self.columns[column].append(value)
            self._text("name", name)
        self.columns["json_offset"].append(json_at[0])
        self.columns["json_length"].append(json_at[1])
        self.columns["media_end"].append(len(self.columns["medium_kind"]))
        self._text("key", key)
        together = "+".join(sorted(fields))
        for counts, name in ((self.sources, source), (self.tasks, task), (self.fields, together)):
            counts[name] = counts.get(name, 0) + 1

    def _text(self, which: str, text: str) -> None:
        self.texts[which] += text.encode("utf-8")
        self.columns[f"{which}_end"].append(len(self.texts[which]))

    def write(self, path: Path, tar: Path) -> None:
        """Writes the index of the finished `tar` to `path`, aside and renamed."""
        arrays = {name: np.array(self.columns[name], dtype=kind) for name, kind in ARRAYS.items()}
        for which, text in self.texts.items():
            arrays[f"{which}_text"] = np.frombuffer(bytes(text), dtype=np.uint8)
        named = {together: count for together, count in self.fields.items() if together}
        kinds = np.bincount(arrays["medium_kind"], minlength=len(KINDS)).tolist()
        about = {
            "version": VERSION,
            "tar_bytes": tar.stat().st_size,
            "tar_digest": full_digest(tar),
            "tar_quick": quick_digest(tar),
            "samples": len(self),
            "media": dict(zip(KINDS, kinds, strict=True)),
            "sources": self.sources,
            "tasks": self.tasks,
            **({"fields": named} if named else {}),
        }
        write(path, arrays, KEY, about)


@dataclass(frozen=True)
class Index:
    """An opened index. `about` holds counts and digests; arrays are mapped at first use."""

    path: Path
    about: Mapping[str, Any]
    head: Mapping[str, Any]
    start: int  # of the arrays in the file

    @staticmethod
    def read(path: Path) -> Index:
        """Raises DataError where the file is no index of this version."""
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            raw = file.read(size) if size < 1 << 20 else b""
        try:
            head = json.loads(raw)
            about = json.loads(head.pop("__metadata__")[KEY])
            whole = path.stat().st_size == 8 + size + max(a["data_offsets"][1] for a in head.values())
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole or about.get("version") != VERSION or set(head) != set(ARRAYS):
            raise DataError(
                f"{path}: no whole shard index of version {VERSION}; delete it, it is built again from the tar"
            )
        return Index(path, about, head, 8 + size)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        checked(self.path, json.loads(mapped[8 : self.start]), mapped, self.start)
        return {
            name: np.frombuffer(
                mapped,
                dtype=np.dtype(kind).newbyteorder("<"),
                count=self.head[name]["shape"][0],
                offset=self.start + self.head[name]["data_offsets"][0],
            )
            for name, kind in ARRAYS.items()
        }

    def __len__(self) -> int:
        return int(self.about["samples"])

    @property
    def fields(self) -> Mapping[str, int]:
        """How many rows have which fields together: {"image+title": 900, "query+target": 100}."""
        named: dict[str, int] = self.about.get("fields", {})  # indexes from before there were fields have none
        plain = len(self) - sum(named.values())
        return {**named, PLAIN: named.get(PLAIN, 0) + plain} if plain else named

    def json_at(self, i: int) -> tuple[int, int]:
        """(offset, length) of the JSON of sample i."""
        n = self._numbers
        return n["json_offset"][i], n["json_length"][i]

    def key(self, i: int) -> str:
        return self._text("key", i)

    def media(self, i: int, tar: str, outside: str = "") -> dict[str, Part]:
        """Name -> medium of sample i, addressed in the file `tar` or the folder `outside`; only the index is read."""
        ends = self._numbers["media_end"]
        found: dict[str, Part] = {}
        for m in range(ends[i - 1] if i else 0, ends[i]):
            name = self._text("name", m)
            found[name] = self._medium(m, tar, outside, name)
        return found

    @cached_property
    def _numbers(self) -> dict[str, memoryview]:
        """The arrays, mapped as they are: a view gives Python's own numbers, three times as fast as numpy does."""
        views: dict[str, Any] = {n: np.asarray(a, ARRAYS[n]).view(ARRAYS[n]) for n, a in self.arrays.items()}
        return {name: memoryview(view) for name, view in views.items()}

    def _text(self, which: str, i: int) -> str:
        n = self._numbers
        ends = n[f"{which}_end"]
        return str(n[f"{which}_text"][ends[i - 1] if i else 0 : ends[i]], "utf-8")

    def _medium(self, m: int, tar: str, outside: str, name: str) -> Part:
        n = self._numbers
        offset, length, kind = n["medium_offset"][m], n["medium_length"][m], n["medium_kind"][m]
        blob = Blob(path=tar, offset=offset, length=length)
        if offset < 0:
            blob = Blob(path=str(Path(outside, name)), offset=0, length=length)
        if kind == 0:
            return Image(blob, n["medium_width"][m], n["medium_height"][m])
        if kind == 1:
            frames, seconds = n["medium_frames"][m], n["medium_seconds"][m]
            return Video(blob, n["medium_width"][m], n["medium_height"][m], frames, seconds)
        return Audio(blob, n["medium_seconds"][m], n["medium_rate"][m])
