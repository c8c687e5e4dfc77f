"""Media that a shard refers to instead of holding: bytes of a file below a root that `referred.json` beside it names.

Mined shards repeat the documents of other rows, and a copy of each picture would multiply a disk. A row names a root,
a path below it and a range of bytes; where the roots lie stands in referred.json alone, so that a run's folder may be
moved, and so that no row can name a file of its own choice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from .catalogue import Catalogue
from .index import full_digest, quick_digest
from .parts import Kind
from .types import Audio, Blob, DataError, Image, Part, Rows, Video

FILE = "referred.json"
_SIZES: dict[Kind, tuple[str, ...]] = {
    "image": ("width", "height"),
    "video": ("width", "height", "frames", "seconds"),
    "audio": ("seconds", "rate"),
}
_KINDS: dict[Kind, type] = {"image": Image, "video": Video, "audio": Audio}
_PLACE = ("root", "file", "offset", "length")


@dataclass(frozen=True, slots=True)
class Referred:
    """One medium as a row refers to it: `length` bytes at `offset` of `file`, a path below the root called `root`.

    sizes: as in the index, by name. digest: BLAKE2b of the bytes, of a file that is no shard; of a shard, referred.json
    has it.
    """

    kind: Kind
    root: str
    file: str
    offset: int
    length: int
    sizes: tuple[float, ...]
    digest: str = ""

    @staticmethod
    def read(kind: Kind, row: Mapping[str, Any], where: str) -> Referred:
        """Raises DataError for anything but a reference that stays below its root."""
        wanted = (*_PLACE, *_SIZES[kind])
        if not set(wanted) <= row.keys() <= {*wanted, "digest"}:
            got = ", ".join(sorted(map(str, row)))
            raise DataError(
                f"{where}: a {kind} that is referred to has {', '.join(wanted)}, and perhaps digest; got {got}"
            )
        for name in ("root", "file", *(("digest",) if "digest" in row else ())):
            if not isinstance(row[name], str) or not row[name]:
                raise DataError(
                    f"{where}: {name} of a {kind} that is referred to must be a string, got {row[name]!r:.80}"
                )
        for name in wanted[2:]:
            value, kinds = row[name], (int, float) if name == "seconds" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < 1 << 63:
                raise DataError(f"{where}: {name} of a {kind} that is referred to must be 0 or more, got {value!r:.80}")
        path = PurePosixPath(row["file"])
        if path.is_absolute() or ".." in path.parts or "\\" in row["file"] or ":" in row["file"].split("/")[0]:
            raise DataError(f"{where}: {row['file']!r} leaves its root; a {kind} is referred to by a path below one")
        sizes = tuple(row[name] for name in _SIZES[kind])
        return Referred(kind, row["root"], row["file"], row["offset"], row["length"], sizes, row.get("digest", ""))

    def row(self) -> dict[str, object]:
        """As the JSON of a part has it."""
        place = {name: getattr(self, name) for name in _PLACE}
        named = dict(zip(_SIZES[self.kind], self.sizes, strict=True))
        return {**place, **named, **({"digest": self.digest} if self.digest else {})}

    def part(self, path: Path) -> Part:
        """The medium, its bytes in `path`."""
        made: Part = _KINDS[self.kind](Blob(path=str(path), offset=self.offset, length=self.length), *self.sizes)
        return made


@dataclass(frozen=True)
class Root:
    """A folder whose files are referred to. shards: of each tar below it that is known, (bytes, quick, digest) as its
    index has them; other files are media of their own."""

    at: str
    shards: Mapping[str, tuple[int, str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Roots:
    """The roots by name, as they lie seen from `folder`, where the shards are."""

    folder: Path
    named: Mapping[str, Root]

    @staticmethod
    def of(rows: Sequence[Rows], folder: Path, run: Path) -> Roots:
        """Those of the media of these rows, for shards in `folder`. Roots below `run` are named relative to `folder`,
        which moves with it; others as they are. Raises DataError for shards elsewhere: a cache forgets them."""
        found: dict[str, Root] = {}
        folder, run = absolute(folder), absolute(run)
        for one in rows:
            for at, shards in _roots(one):
                inside = at == run or run in at.parents
                place = Path(os.path.relpath(at, folder)).as_posix() if inside else at.as_posix()
                known = next((n for n, root in found.items() if root.at == place), "")
                base = known or _free(at.name or "root", found)
                found[base] = Root(place, {**(found[base].shards if known else {}), **shards})
        return Roots(folder, found)

    @staticmethod
    def read(folder: Path) -> Roots:
        """Raises DataError where referred.json is missing or not sound."""
        path = folder / FILE
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            named = {
                str(name): Root(
                    str(root["at"]), {f: (int(b), str(q), str(d)) for f, (b, q, d) in root["shards"].items()}
                )
                for name, root in told["roots"].items()
            }
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror}; shards that refer to media elsewhere are read in the folder that they were "
                "written in. To take them to another place, write them with their media in them (media='copy')"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path}: is not sound; bring it back, or make the shards beside it again") from None
        return Roots(folder, named)

    def write(self) -> None:
        told = {
            name: {"at": root.at, "shards": {k: list(v) for k, v in root.shards.items()}}
            for name, root in self.named.items()
        }
        aside = self.folder / f".{FILE}.{os.getpid()}.part"
        aside.write_text(
            json.dumps({"version": 1, "roots": told}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        aside.replace(self.folder / FILE)

    def refer(self, kind: Kind, part: Image | Video | Audio, where: str) -> Referred:
        """The reference to a medium that is a file below a root. Raises DataError where it is not, or is not whole."""
        blob, path = part.blob, str(absolute(part.blob.path))
        name, file = self._place(path, where)
        size = _bytes(path)
        length = blob.length if blob.length >= 0 else size - blob.offset
        if length < 0 or blob.offset + length > size:
            raise DataError(
                f"{where}: {length:,} bytes at offset {blob.offset:,} of {path}, which has {size:,}; was it cut short?"
            )
        sizes = tuple(getattr(part, name) for name in _SIZES[kind])
        shard = file in self.named[name].shards
        return Referred(
            kind, name, file, blob.offset, length, sizes, "" if shard else _digest(path, blob.offset, length)
        )

    def _place(self, path: str, where: str) -> tuple[str, str]:
        for name, at in self._absolute:
            if path.startswith(at + os.sep):
                return name, Path(os.path.relpath(path, at)).as_posix()
        known = ", ".join(at for _, at in self._absolute) or "none"
        raise DataError(
            f"{where}: a medium in {path}, which is below none of the folders that are referred to ({known}); write "
            "these shards with their media in them (media='copy')"
        )

    @cached_property
    def _absolute(self) -> tuple[tuple[str, str], ...]:
        """Names and folders, the deepest first."""
        found = ((name, str(absolute(self.folder / root.at))) for name, root in self.named.items())
        return tuple(sorted(found, key=lambda x: -len(x[1])))

    def path(self, referred: Referred, where: str) -> Path:
        """Of the file. Raises DataError for an unknown root, and for a shard that is another now."""
        root = self.named.get(referred.root)
        if root is None:
            known = ", ".join(self.named) or "none"
            raise DataError(f"{where}: refers to root {referred.root!r}, but {self.folder / FILE} names {known}")
        path = self.folder / root.at / referred.file
        told = root.shards.get(referred.file)
        if told is not None:
            self._same(path, told, where)
        return path

    def _same(self, path: Path, told: tuple[int, str, str], where: str) -> None:
        try:
            stat = path.stat()
            same = stat.st_size == told[0] and _quick(str(path), stat.st_size, stat.st_mtime_ns) == told[1]
        except OSError as error:
            raise DataError(
                f"{where}: refers to {path}: {error.strerror}; bring it back, or correct `at` in {self.folder / FILE}"
            ) from None
        if not same:
            raise DataError(
                f"{where}: refers to {path}, which was packed anew since ({told[0]:,} bytes then, {stat.st_size:,} now)"
                "; bring the old one back, or make these shards again"
            )

    def faults(self, referred: Referred, seen: set[str]) -> str:
        """What is wrong with the bytes, read whole: of a shard once, noted in `seen`; "" where they are as told."""
        path = self.path(referred, "").absolute()
        told = self.named[referred.root].shards.get(referred.file)
        if told is None:
            data = referred.part(path).blob.read()  # type: ignore[union-attr]
            return "" if _of(data) == referred.digest else f"{path}: is another file than was referred to"
        if str(path) in seen:
            return ""
        seen.add(str(path))
        return "" if full_digest(path) == told[2] else f"{path}: is damaged, or another shard than was referred to"


def absolute(path: Path | str) -> Path:
    """Without "..", and without following links, of which hub caches are made."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _roots(rows: Any) -> list[tuple[Path, dict[str, tuple[int, str, str]]]]:
    """(folder, its shards) of all that the media of rows may lie in."""
    inner = [*getattr(rows, "parts", ()), *([rows.rows] if hasattr(rows, "rows") else [])]
    found = [root for one in inner for root in _roots(one)]
    catalogue = getattr(rows, "catalogue", None)
    if not isinstance(catalogue, Catalogue):
        return found
    if getattr(rows, "remote", None) is not None:
        raise DataError(
            f"source {rows.name!r}: its shards lie elsewhere, and what this host keeps of them may go at any time; "
            "bring them here, or write the media into the new shards (media='copy')"
        )
    top = absolute(catalogue.root)
    names = catalogue.names()
    entries = (catalogue.entry(i) for i in range(len(catalogue)))
    found.append((top, {e.name: (e.bytes, e.tar_quick, e.tar_digest) for e in entries}))
    if getattr(rows, "outside", ""):
        found.append((absolute(rows.outside), {}))
    for folder in dict.fromkeys((top / name).parent for name in names):
        if (folder / FILE).is_file():  # what these refer to is referred to by the new ones too, at its own place
            roots = Roots.read(folder).named.values()
            found += [(absolute(folder / root.at), dict(root.shards)) for root in roots]
    return found


def _free(name: str, taken: Mapping[str, Root]) -> str:
    if name not in taken:
        return name
    return next(word for i in range(2, len(taken) + 3) if (word := f"{name}-{i}") not in taken)


@lru_cache(maxsize=1 << 16)
def _bytes(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; was it moved or removed since it was indexed?") from None


@lru_cache(maxsize=1 << 16)
def _digest(path: str, offset: int, length: int) -> str:
    return _of(Blob(path=path, offset=offset, length=length).read())


def _of(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


@lru_cache(maxsize=1 << 16)
def _quick(path: str, size: int, time: int) -> str:
    return quick_digest(Path(path))
