"""Tar members <-> bytes: headers that are the same on every machine, and a walk that refuses what could do harm.

Nothing is ever extracted to disk; names are checked all the same, because other tools will extract these files.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .types import DataError

BLOCK = tarfile.BLOCKSIZE  # headers and contents are padded to 512 bytes
LARGEST = 8 * 1024**3 - 1  # a ustar size field holds 11 octal digits

# webdataset's own rule: the key ends at the first dot of the file name, the rest is the field.
_KEY = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$")


@dataclass(frozen=True, slots=True)
class Member:
    """`length` bytes of content at `offset` of the tar."""

    name: str
    offset: int
    length: int


def header(name: str, length: int) -> bytes:
    """The ustar header of a plain file: no owner, no time, mode 0644, so that equal contents give equal tars."""
    if length > LARGEST:
        raise DataError(f"{name}: {length:,} bytes, a member holds at most {LARGEST:,}; cut the medium into pieces")
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime, info.uid, info.gid = length, 0o644, 0, 0, 0
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def padding(length: int) -> bytes:
    """Zeros up to the next block."""
    return b"\0" * (-length % BLOCK)


def ending(length: int) -> bytes:
    """Two zero blocks and zeros up to the record size, which end a tar of `length` bytes."""
    return b"\0" * (2 * BLOCK + -(length + 2 * BLOCK) % tarfile.RECORDSIZE)


def split(name: str, where: str) -> tuple[str, str]:
    """("shard-000000/000012", "query.0.jpg") of "shard-000000/000012.query.0.jpg"."""
    found = _KEY.match(name)
    if found is None:
        raise DataError(
            f"{where}: member {name!r} is not named KEY.field; a sample is KEY.json and KEY.<medium> members"
        )
    return found[1], found[2]


def check_member(info: tarfile.TarInfo, where: str) -> None:
    """Raises DataError for a member that could leave its folder, and for anything but a plain file or a folder."""
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts or "\\" in info.name or re.match(r"^[A-Za-z]:", info.name):
        raise DataError(f"{where}: member {info.name!r} escapes its folder; do not unpack this tar, pack it anew")
    if info.issym() or info.islnk():
        raise DataError(f"{where}: member {info.name!r} is a link to {info.linkname!r}; store the file itself")
    if not (info.isdir() or info.isreg()) or info.issparse():
        raise DataError(f"{where}: member {info.name!r} is a device, pipe or sparse file; only plain files are read")


def members(path: Path) -> Iterator[Member]:
    """Every plain file of a tar, in order. Raises DataError where the tar is cut short, damaged or unsafe."""
    where = str(path)
    last = "its start"
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # tarfile keeps every header otherwise
                check_member(info, where)
                last = info.name
                if info.isreg():
                    yield Member(info.name, info.offset_data, info.size)
            # tarfile takes a damaged header, or none at all, for the end: only a zero block is one.
            end = tar.offset
    except (tarfile.ReadError, EOFError) as error:
        raise DataError(
            f"{where}: cut short or damaged after {last!r} ({error}); copy it again or pack it anew"
        ) from None
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error})") from None
    with path.open("rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise DataError(f"{where}: cut short or damaged after {last!r}; copy it again or pack it anew")
