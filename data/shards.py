"""Shards: a writer, random access through the index, and a stream. The format is in docs/shards.md.

Media are handed out as addresses (`Blob`) with their sizes; nothing is decoded here.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import select
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from . import cataloguing
from .addresses import redacted
from .index import SUFFIX, Builder, index_path
from .parts import Kind, probe
from .referred import Referred, Roots
from .rows import Find, Medium, combination, parse, to_example, to_row
from .scan import build_index, opened_index, rows
from .tars import BLOCK, Readable, ending, header, padding, raising, unsafe
from .types import Blob, DataError, Example, Part, Progress
from .verify import Fault, verify

_READ = 1 << 20
_STALLED_S = 300.0

__all__ = ["Fault", "Shard", "build_index", "download", "expanded", "stream", "verify", "write_shards"]


def write_shards(
    examples: Iterable[Example],
    out: Path,
    *,
    max_bytes: int = 256 << 20,
    prefix: str = "shard",
    progress: Progress | None = None,
    outside: str = "",
) -> list[Path]:
    """Writes tars of at most `max_bytes` (a larger sample gets its own) with an index beside each and the folder's
    catalogue; returns their paths.

    Equal examples give equal bytes. Nothing appears under its name before all is written. `progress` is told the
    samples done, and the total where `examples` has a length (else 0). `outside` is a media folder whose files are
    named, not copied: only for the cache beside a table. Raises DataError for an example that cannot be used, for no
    examples at all, and for a folder that holds shards of this prefix already.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob(f"{prefix}-*.tar")):
        raise DataError(f"{out}: holds shards {prefix}-*.tar already; choose an empty folder or another prefix")
    total = len(examples) if isinstance(examples, Sized) else 0
    finished: list[tuple[Path, Path]] = []  # (written aside, its name)
    shard: _Open | None = None
    try:
        for i, example in enumerate(examples):
            raw, media = to_row(example, f"example {i} (key {example.key!r})", outside)
            if shard is not None and shard.length + _tar_bytes(raw, media) > max_bytes:
                finished.append(shard.close())
                shard = None
            if shard is None:
                shard = _Open(out / f"{prefix}-{len(finished):06d}.tar")
            shard.add(example, raw, media)
            if progress is not None:
                progress(i + 1, total)
        if shard is None:
            raise DataError(f"{out}: no examples to write; a shard holds one at least")
        finished.append(shard.close())
    except BaseException:
        for path in [t for t, _ in finished] + ([shard.temporary] if shard else []):
            path.unlink(missing_ok=True)
            index_path(path).unlink(missing_ok=True)
        raise
    for temporary, path in finished:
        index_path(temporary).replace(index_path(path))
        temporary.replace(path)
    cataloguing.write(out)
    return [path for _, path in finished]


def write_shard(examples: Iterable[Example], path: Path, roots: Roots | None = None) -> int:
    """Writes examples that have keys ("source/...") to one tar under these keys, with its index; returns how many.

    With `roots`, media that lie in files are referred to, not copied; `roots.write()` leaves what readers need beside
    the tars. Nothing is written for no examples. Equal examples give equal bytes. Raises DataError for an example that
    cannot be used or has no key, and for a key that comes twice.
    """
    shard: _Open | None = None
    seen: set[str] = set()
    try:
        for example in examples:
            where = f"{path}: {example.key or 'an example without a key'}"
            source, key = _split(example, where)
            if key in seen:
                raise DataError(f"{where}: comes twice; leave out one of the sources, or rows, that are the same")
            seen.add(key)
            shard = shard or _Open(path)
            shard.add(example, *to_row(replace(example, source=source), where, roots=roots), key)
        if shard is None:
            return 0
        temporary, _ = shard.close()
    except BaseException:
        if shard is not None:
            shard.temporary.unlink(missing_ok=True)
        raise
    index_path(temporary).replace(index_path(path))
    temporary.replace(path)
    return len(seen)


def _split(example: Example, where: str) -> tuple[str, str]:
    """(source, key in the tar) of a key: a source that was opened under another name does not change it."""
    source, slash, key = example.key.rpartition("/")
    if example.key.startswith(f"{example.source}/"):
        source, key = example.source, example.key[len(example.source) + 1 :]
    elif "/" in source:  # "source/shard/index", as ours are
        source, _, shard = source.rpartition("/")
        key = f"{shard}/{key}"
    if not (source and key and slash) or "." in key.rpartition("/")[2] or unsafe(tarfile.TarInfo(key)):
        raise DataError(
            f"{where}: has no key of the form source/shard/index, which would name it in a tar; pack it first"
        )
    return source, key


def _tar_bytes(raw: bytes, media: list[Medium]) -> int:
    inside = [raw, *(m.data for m in media if not m.outside)]
    return sum(BLOCK + len(data) + len(padding(len(data))) for data in inside)


class _Open:
    """A shard being written, under a name of its own until all are done."""

    def __init__(self, path: Path) -> None:
        self.path, self.length, self.builder = path, 0, Builder()
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.file: BinaryIO = self.temporary.open("wb")

    def add(self, example: Example, raw: bytes, media: list[Medium], key: str = "") -> None:
        # The shard's own name in front keeps keys apart when tools concatenate shards.
        key = key or f"{self.path.stem}/{len(self.builder):06d}"
        json_at = (self._member(f"{key}.json", raw), len(raw))
        at = [
            (m.name, m.part, -1 if m.outside else self._member(f"{key}.{m.name}", m.data), len(m.data)) for m in media
        ]
        fields = combination(example.fields, bool(example.query.parts), bool(example.positives))
        self.builder.add(key, example.source, example.task, json_at, at, fields)

    def _member(self, name: str, data: bytes) -> int:
        start = self.length + BLOCK
        for piece in (header(name, len(data)), data, padding(len(data))):
            self.length += self.file.write(piece)
        return start

    def close(self) -> tuple[Path, Path]:
        self.file.write(ending(self.length))
        self.file.close()
        self.builder.write(index_path(self.temporary), self.temporary)
        return self.temporary, self.path


class Shard:
    """One tar with its index (built at the first opening where it is missing): random access to its examples.

    `outside` is the media folder of a table's cache. Raises DataError where the index is that of another tar.
    """

    def __init__(self, path: Path | str, outside: str = "") -> None:
        self.path, self.outside = Path(path), outside
        self.index = opened_index(self.path)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def digest(self) -> str:
        """BLAKE2b of the whole tar, as the index recorded it at packing."""
        return str(self.index.about["tar_digest"])

    @cached_property
    def _roots(self) -> Roots:
        return Roots.read(self.path.parent)

    @cached_property
    def _bytes(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def json(self, i: int) -> bytes:
        """The JSON bytes of sample i."""
        offset, length = self.index.json_at(i)
        return self._bytes[offset : offset + length]

    def example(self, i: int, source: str = "", at: str = "") -> Example:
        """Sample i, its media as addresses into the tar, as `at` has its path if given. `source` takes the place of the
        row's own; the key stays."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path}: sample {i} of {len(self)}")
        key = self.index.key(i)
        where = f"{self.path}: sample {key}"
        row = parse(self.json(i), where)
        media = self.index.media(i, at or str(self.path), self.outside)

        def find(kind: Kind, name: str | Referred) -> Part:
            if isinstance(name, Referred):
                return name.part(self._roots.path(name, where))
            if name not in media:
                raise DataError(f"{where}: medium {name!r} is not in the index; delete {self.path.name}{SUFFIX}")
            return media[name]

        return to_example(row, find, f"{row.get('source', '')}/{key}", where, source)


def stream(url: str) -> Iterator[Example]:
    """Every example of a shard at a path, "pipe:command", a URL or "-" (standard input), in order, media in memory.

    No index is read, so each medium is probed for its size. Raises DataError as random access does.
    """
    told = redacted(url)
    try:
        file = _Opened(url)
    except OSError as error:
        raise DataError(f"{told}: cannot be opened ({error}); does it exist?") from None
    fault: BaseException | None = None
    try:
        yield from _streamed(file, told)
    except BaseException as error:
        fault = error
        raise
    finally:
        try:
            file.close()
        except OSError as error:
            # A command whose reader left early fails too, which is no fault of its own.
            if fault is None or isinstance(fault, DataError):
                raise DataError(f"{told}: the command failed ({error}); what it gave is not whole") from fault


class _Opened:
    """A path, URL, "pipe:command" or "-" that webdataset opened. Raises OSError in words of ours: those of webdataset
    hold the whole command, secrets and all."""

    def __init__(self, url: str) -> None:
        gopen = import_module("webdataset.gopen").gopen  # the package itself puts a function over this module's name
        try:
            self.file = gopen(url)
        except (OSError, ValueError) as error:
            raise _plain(error) from None

    def read(self, size: int = -1, /) -> bytes:
        """`size` bytes, fewer at the end. A command is waited for, but not for ever."""
        stream, pieces = getattr(self.file, "stream", None), list[bytes]()
        try:
            if stream is None or size < 0:
                return bytes(self.file.read(size))
            while size and (piece := self._piece(stream.fileno(), size)):
                pieces.append(piece)
                size -= len(piece)
        except OSError as error:
            raise _plain(error) from None
        return b"".join(pieces)

    def _piece(self, fd: int, size: int) -> bytes:
        if not select.select([fd], [], [], _STALLED_S)[0]:
            self.file.proc.kill()
            raise TimeoutError(errno.ETIMEDOUT, f"nothing came for {_STALLED_S:g} s")
        return os.read(fd, size)

    def close(self) -> None:
        try:
            self.file.close()
        except OSError as error:
            raise _plain(error) from None


_CURL = {6: "no such host", 7: "no connection", 18: "cut short", 22: "refused or not found", 28: "too slow"}


def _plain(error: Exception) -> OSError:
    found = re.search(r": exit (-?\d+) \(read\)", str(error))
    if found is None:
        return OSError(redacted(getattr(error, "strerror", None) or str(error)))
    meaning = _CURL.get(int(found[1]), "") if "'curl'" in str(error) else ""
    return OSError(f"exit {found[1]}" + (f": {meaning}" if meaning else ""))


def download(url: str, path: Path) -> str:
    """Copies what a URL, or "pipe:command", gives into a file; returns the BLAKE2b of it, as in an index.

    Raises OSError where it fails, gives less than it promised, or gives nothing for five minutes.
    """
    file, h = _Opened(url), blake2b(digest_size=16)
    try:
        with path.open("r+b" if path.exists() else "wb") as out:
            while block := file.read(_READ):
                h.update(block)
                out.write(block)
            out.truncate()
    except BaseException:
        with suppress(OSError):  # it fails, too, because nobody reads on
            file.close()
        raise
    file.close()
    return h.hexdigest()


def expanded(pattern: str) -> list[str]:
    """The names of a pattern with braces, shard-{00..12}.tar, as webdataset has it. Raises DataError for half one."""
    module = import_module("braceexpand")  # webdataset's
    try:
        return list(module.braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern!r}: {error}; write a range as shard-{{000000..000999}}.tar") from None


def _streamed(file: Readable, url: str) -> Iterator[Example]:
    count = 0
    for sample, row, kinds in rows(file, url, raising(url)):
        where = f"{url}: sample {sample.key}"
        parts = {n: probe(k, Blob(sample.media[n].data), f"{where}: {n}") for n, k in kinds.items()}
        yield to_example(row, _found(parts, url, where), f"{row.get('source', '')}/{sample.key}", where)
        count += 1
    if not count:
        raise DataError(f"{url}: no samples in it; is it the right address?")


def _found(parts: Mapping[str, Part], url: str, where: str) -> Find:
    def find(kind: Kind, name: str | Referred) -> Part:
        if not isinstance(name, Referred):
            return parts[name]
        if not Path(url).is_file():
            raise DataError(f"{where}: refers to media beside it, which a stream has not; bring the folder here")
        return name.part(Roots.read(Path(url).parent).path(name, where))

    return find
