"""Tar members <-> bytes: headers that are the same on every machine, and one walk that refuses what could do harm.

The walk never extracts to disk and never seeks, so files and pipes share it; names are checked all the same, because
other tools will extract these files.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

from .types import DataError

BLOCK = tarfile.BLOCKSIZE  # headers and contents are padded to 512 bytes
LARGEST = 8 * 1024**3 - 1  # a ustar size field holds 11 octal digits
_READ = 1 << 20

# webdataset's own rule: the key ends at the first dot of the file name, the rest is the field.
_KEY = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$")

Tell = Callable[[str, str], None]  # (key or "", message): raises, or notes it down so that the walk goes on


class Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Member:
    """One member's content, which stands at `offset` of the tar."""

    offset: int
    data: bytes


@dataclass
class Sample:
    """The members of one key: its JSON, and its media by name ("query.0.jpg")."""

    key: str
    json: Member | None = None
    media: dict[str, Member] = field(default_factory=dict)


def raising(where: str) -> Tell:
    """The strict way with faults: the first one ends the walk."""

    def fault(key: str, message: str) -> None:
        raise DataError(f"{where}: sample {key}: {message}" if key else f"{where}: {message}")

    return fault


def header(name: str, length: int) -> bytes:
    """The ustar header of a plain file: no owner, no time, mode 0644, so that equal contents give equal tars."""
    if length > LARGEST:
        raise DataError(f"{name}: {length:,} bytes, a member holds at most {LARGEST:,}; cut the medium into pieces")
    raw = name.encode()
    if len(raw) > tarfile.LENGTH_NAME:  # tarfile splits it in two, or refuses it
        return _header(name, length)
    # tarfile takes 50 microseconds a header; only name, size and checksum differ between ours.
    size = b"%011o" % length
    total = _HEADER_SUM + sum(raw) + sum(size)
    head = raw.ljust(tarfile.LENGTH_NAME, b"\0") + _HEADER[100:124] + size + _HEADER[135:148]
    return head + b"%06o\0" % total + _HEADER[155:]


def _header(name: str, length: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = length, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


_HEADER = _header("", 0)
# The checksum is the sum of the bytes with its own eight taken as spaces; the size's digits are added with each size.
_HEADER_SUM = sum(_HEADER[:124]) + sum(_HEADER[135:148]) + 8 * ord(" ") + sum(_HEADER[156:])


def padding(length: int) -> bytes:
    """Zeros up to the next block."""
    return b"\0" * (-length % BLOCK)


def ending(length: int) -> bytes:
    """Two zero blocks, and zeros up to tar's record size, which end a tar of `length` bytes."""
    return b"\0" * (2 * BLOCK + -(length + 2 * BLOCK) % tarfile.RECORDSIZE)


def samples(file: Readable, fault: Tell) -> Iterator[Sample]:
    """Every sample of a tar, in order. Tells `fault` of one without JSON, of one that comes twice, and as `members`."""
    current: Sample | None = None
    seen: set[str] = set()

    def whole(sample: Sample) -> bool:
        if sample.key in seen:
            fault(sample.key, "comes twice; the members of a sample stand together, and its key is its own")
            return False
        seen.add(sample.key)
        if sample.json is None:
            fault(sample.key, f"no {sample.key}.json; every sample has one (docs/shards.md)")
        return sample.json is not None

    for name, member in members(file, fault):
        found = _KEY.match(name)
        if found is None:
            fault("", f"member {name!r} is not named KEY.field; a sample is KEY.json and KEY.<medium> members")
            continue
        key, rest = found[1], found[2]
        if current is None or key != current.key:
            if current is not None and whole(current):
                yield current
            current = Sample(key)
        if rest in current.media or (rest == "json" and current.json is not None):
            fault(key, f"member {name!r} comes twice; give each medium its own name")
        elif rest == "json":
            current.json = member
        else:
            current.media[rest] = member
    if current is not None and whole(current):
        yield current


def members(file: Readable, fault: Tell) -> Iterator[tuple[str, Member]]:
    """(name, content) of every plain file of a tar, in order. Tells `fault` where it is unsafe, cut or damaged."""
    source, last = _Remembering(file), "its start"
    damaged = "copy it again or pack it anew"
    try:
        with tarfile.open(fileobj=source, mode="r|", bufsize=_READ) as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                last = info.name
                tar.members.clear()  # tarfile keeps every header otherwise
                wrong = unsafe(info)
                if wrong:
                    fault(_key_of(info.name), f"member {info.name!r} {wrong}")
                elif info.isreg():
                    content = tar.extractfile(info)
                    yield info.name, Member(info.offset_data, content.read() if content else b"")
            # tarfile takes a damaged header, or none at all, for the end: only a zero block is one, and only where
            # zeros alone follow. A block that a disk lost is zeros too; the rows behind it would be lost in silence.
            rest = source.behind(tar.offset)
            ended, more = rest[:BLOCK] == bytes(BLOCK), bool(rest.strip(b"\0"))
            while rest := source.read(_READ):  # a pipe's command wants its output read
                more = more or bool(rest.strip(b"\0"))
            if not ended:
                fault(_key_of(last), f"the tar is cut short or damaged at or after {last!r}; {damaged}")
            elif more:
                fault(_key_of(last), f"more stands behind the end of the tar, which comes after {last!r}; {damaged}")
    except (tarfile.TarError, EOFError) as error:
        fault(_key_of(last), f"the tar is cut short or damaged at or after {last!r} ({error}); {damaged}")
    except OSError as error:
        fault(
            _key_of(last),
            f"cannot be read at or after {last!r} ({error.strerror or error}); does it exist, and is it whole?",
        )


def unsafe(info: tarfile.TarInfo) -> str:
    """Why a member is refused: it could leave its folder, or is no plain file and no folder. "" where it is sound."""
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts or "\\" in info.name or re.match(r"^[A-Za-z]:", info.name):
        return "escapes its folder; do not unpack this tar, pack it anew"
    if info.issym() or info.islnk():
        return f"is a link to {info.linkname!r}; store the file itself"
    if not (info.isdir() or info.isreg()) or info.issparse():
        return "is a device, pipe or sparse file; only plain files are read"
    return ""


def _key_of(name: str) -> str:
    found = _KEY.match(name)
    return found[1] if found else ""


class _Remembering:
    """A stream that keeps its last two reads, so that the walk can look at the block where tarfile stopped."""

    def __init__(self, file: Readable) -> None:
        self.file, self.total, self.kept = file, 0, [b"", b""]

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        if data:
            self.total += len(data)
            self.kept = [self.kept[1], data]
        return data

    def behind(self, offset: int) -> bytes:
        """What was read from `offset` on; b"" where that is further back than it remembers."""
        tail = b"".join(self.kept)
        start = offset - (self.total - len(tail))
        return tail[start:] if start >= 0 else b""
