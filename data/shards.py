"""Shards: a writer, random access through the index, and a stream. The format is in docs/shards.md.

Every function here hands out media as addresses (`Blob`); nothing is decoded, and a size comes from the index.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from .index import SUFFIX, Builder, Index, index_path, quick_digest
from .rows import Medium, names, parse, to_example, to_row
from .tars import BLOCK, Member, ending, header, members, padding, split
from .types import Blob, DataError, Example, Part, Progress

__all__ = ["Shard", "build_index", "samples", "stream", "write_shards"]


def write_shards(
    examples: Iterable[Example],
    out: Path,
    *,
    max_bytes: int = 256 << 20,
    prefix: str = "shard",
    progress: Progress | None = None,
) -> list[Path]:
    """Writes tars of at most `max_bytes` (a larger sample gets its own) with an index beside each; returns their paths.

    Equal examples give equal bytes. Nothing appears under its name before all is written. `progress` is told the
    samples done, and the total where `examples` has a length (else 0). Raises DataError for an example that cannot be
    used, for no examples at all, and for a folder that holds shards of this prefix already.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob(f"{prefix}-*.tar")):
        raise DataError(f"{out}: holds shards {prefix}-*.tar already; choose an empty folder or another prefix")
    total = len(examples) if hasattr(examples, "__len__") else 0
    finished: list[tuple[Path, Path]] = []  # (written aside, its name)
    shard: _Open | None = None
    done = 0
    try:
        for done, example in enumerate(examples, start=1):
            raw, media = to_row(example, f"example {done - 1} (key {example.key!r})")
            if shard is not None and shard.length + _tar_bytes(raw, media) > max_bytes:
                shard = shard.close(finished)
            if shard is None:
                shard = _Open(out / f"{prefix}-{len(finished):06d}.tar")
            shard.add(raw, media)
            if progress is not None:
                progress(done, total)
        if shard is None:
            raise DataError(f"{out}: no examples to write; a shard holds one at least")
        shard = shard.close(finished)
    except BaseException:
        if shard is not None:
            shard.abandon()
        for temporary, _ in finished:
            temporary.unlink()
            index_path(temporary).unlink()
        raise
    for temporary, path in finished:
        index_path(temporary).replace(index_path(path))
        temporary.replace(path)
    return [path for _, path in finished]


def _tar_bytes(raw: bytes, media: list[Medium]) -> int:
    return sum(BLOCK + len(data) + len(padding(len(data))) for data in (raw, *(m.data for m in media)))


class _Open:
    """A shard being written, under a name of its own until all are done."""

    def __init__(self, path: Path) -> None:
        self.path, self.length, self.builder = path, 0, Builder()
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.file: BinaryIO = self.temporary.open("wb")

    def add(self, raw: bytes, media: list[Medium]) -> None:
        key = f"{self.path.stem}/{len(self.builder):06d}"
        json_at = (self._member(f"{key}.json", raw), len(raw))
        at = [(m.name, m.part, self._member(f"{key}.{m.name}", m.data), len(m.data)) for m in media]
        self.builder.add(key, parse(raw, key), json_at, at)

    def _member(self, name: str, data: bytes) -> int:
        self.file.write(header(name, len(data)))
        self.file.write(data)
        self.file.write(padding(len(data)))
        start = self.length + BLOCK
        self.length = start + len(data) + len(padding(len(data)))
        return start

    def close(self, finished: list[tuple[Path, Path]]) -> None:
        self.file.write(ending(self.length))
        self.file.close()
        self.builder.write(index_path(self.temporary), self.temporary)
        finished.append((self.temporary, self.path))

    def abandon(self) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)
        index_path(self.temporary).unlink(missing_ok=True)


def samples(path: Path) -> Iterator[tuple[str, Member, dict[str, Member]]]:
    """(key, its JSON member, its media by name) of every sample of a tar, in order; a walk over headers, no index."""
    key, row, media = "", None, dict[str, Member]()
    seen: set[str] = set()

    def finish() -> tuple[str, Member, dict[str, Member]]:
        if row is None:
            raise DataError(f"{path}: sample {key}: no {key}.json; every sample has one (docs/shards.md)")
        if key in seen:
            raise DataError(
                f"{path}: sample {key} comes twice; the members of a sample stand together, keys are unique"
            )
        seen.add(key)
        return key, row, media

    for member in members(path):
        this, name = split(member.name, str(path))
        if this != key and key:
            yield finish()
            row, media = None, {}
        key = this
        if name in media or (name == "json" and row is not None):
            raise DataError(f"{path}: sample {key}: member {member.name!r} comes twice; give each its own name")
        if name == "json":
            row = member
        else:
            media[name] = member
    if key:
        yield finish()


def build_index(path: Path) -> Path:
    """Walks a tar, probes its media, and writes the index beside it. Raises DataError at the first fault."""
    from .parts import probe

    builder = Builder()
    for key, member, media in samples(path):
        where = f"{path}: sample {key}"
        row = parse(Blob(path=str(path), offset=member.offset, length=member.length).read(), where)
        kinds = named(row, set(media), where)
        at = []
        for name, kind in kinds.items():
            m = media[name]
            part = probe(kind, Blob(path=str(path), offset=m.offset, length=m.length), f"{where}: {name}")
            at.append((name, part, m.offset, m.length))
        builder.add(key, row, (member.offset, member.length), at)
    if not len(builder):
        raise DataError(f"{path}: no samples in it; delete it or pack it anew")
    builder.write(index_path(path), path)
    return index_path(path)


def named(row: Mapping[str, Any], present: set[str], where: str) -> dict[str, str]:
    """Name -> kind of the media in a row, all of which must be `present`, and no others."""
    kinds = names(row, where)
    if missing := sorted(kinds.keys() - present):
        raise DataError(f"{where}: medium {missing[0]!r} is named by the JSON but not in the tar; pack it anew")
    if more := sorted(present - kinds.keys()):
        raise DataError(f"{where}: member {more[0]!r} is not named by the JSON; name it in a part or leave it out")
    return kinds


class Shard:
    """One tar with its index (built at the first opening where it is missing): random access to its examples."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such shard")
        beside = index_path(self.path)
        if not beside.exists():
            build_index(self.path)
        self.index = Index.read(beside)
        if self.index.about["tar_quick"] != quick_digest(self.path):
            raise DataError(
                f"{beside}: is the index of another tar ({self.index.about['tar_bytes']:,} bytes there, "
                f"{self.path.stat().st_size:,} here); delete it, it is built again from the tar"
            )
        if not len(self.index):
            raise DataError(f"{self.path}: no samples in it; delete it or pack it anew")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def digest(self) -> str:
        """BLAKE2b of the whole tar, as the index recorded it at packing."""
        return str(self.index.about["tar_digest"])

    @cached_property
    def _bytes(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def json(self, i: int) -> bytes:
        """The JSON bytes of sample i."""
        offset, length = self.index.json_at(i)
        return self._bytes[offset : offset + length]

    def example(self, i: int, source: str = "") -> Example:
        """Sample i, its media as addresses into the tar. `source` takes the place of the row's own; the key stays."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path}: sample {i} of {len(self)}")
        key = self.index.key(i)
        where = f"{self.path}: sample {key}"
        row = parse(self.json(i), where)
        media = self.index.media(i, str(self.path))

        def find(kind: str, name: str) -> Part:
            if name not in media:
                raise DataError(f"{where}: medium {name!r} is not in the index; delete {self.path.name}{SUFFIX}")
            return media[name]

        return to_example(row, find, f"{row.get('source', '')}/{key}", where, source)


def stream(url: str) -> Iterator[Example]:
    """Every example of a shard behind a path, "pipe:command", a URL or "-" (standard input), in order, media in memory.

    No index is read, so each medium is probed for its size. Raises DataError as random access does.
    """
    import webdataset as wds

    from .parts import probe

    found = False
    pipe = wds.DataPipeline(wds.SimpleShardList([url]), wds.tarfile_to_samples(handler=wds.reraise_exception))
    for sample in pipe:
        found = True
        key = sample["__key__"]
        where = f"{url}: sample {key}"
        if "json" not in sample:
            raise DataError(f"{where}: no {key}.json; every sample has one (docs/shards.md)")
        row = parse(sample["json"], where)
        media = {name: data for name, data in sample.items() if name != "json" and not name.startswith("__")}
        kinds = named(row, set(media), where)
        parts = {name: probe(kind, Blob(media[name]), f"{where}: {name}") for name, kind in kinds.items()}
        yield to_example(row, lambda _, name, parts=parts: parts[name], f"{row.get('source', '')}/{key}", where)
    if not found:
        raise DataError(f"{url}: no samples in it")
