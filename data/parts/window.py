"""Encoded bytes as a file or a view of one: what a reader skips is never read, so a long clip costs only its pieces."""

from __future__ import annotations

import io
import mmap
import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

from ..types import Blob, DataError

_AHEAD = 1 << 16  # bytes read at a time


def opened(blob: Blob) -> BinaryIO:
    """A seekable file over the blob's bytes, from 0 to their end; close it. Raises DataError as `Blob.read` does."""
    if not blob.path:
        return io.BytesIO(blob.data)
    return cast(BinaryIO, io.BufferedReader(_Window(blob), _AHEAD))


def view(blob: Blob) -> memoryview:
    """The blob's bytes. Where they lie inside a larger file (a shard), they are mapped: nothing is copied, and what is
    not looked at is not read. Raises DataError as `Blob.read` does."""
    # The path of a shard in a bounded cache is a string of its own kind (cache.Held): a map would outlive its removal,
    # and keep its place on the disk.
    if not blob.path or blob.offset <= 0 or blob.length < 0 or type(blob.path) is not str:
        return memoryview(blob.read())
    found = _mapped(blob.path)[blob.offset : blob.offset + blob.length]
    return found if len(found) == blob.length else memoryview(blob.read())  # which says what is wrong


@lru_cache(maxsize=64)
def _mapped(path: str) -> memoryview:
    try:
        with Path(path).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{path}: {why}; was it moved or removed since it was indexed?") from error


def size(file: BinaryIO) -> int:
    """Bytes of a file; its place is at the start then."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    return end


class _Window(io.RawIOBase):
    """Bytes `offset` to `offset + length` of a file."""

    def __init__(self, blob: Blob) -> None:
        try:
            self.file = Path(blob.path).open("rb", buffering=0)  # noqa: SIM115  (closed with this)
        except OSError as error:
            raise DataError(f"{blob.path}: {error.strerror}; was it moved or removed since it was indexed?") from error
        here = os.fstat(self.file.fileno()).st_size - blob.offset
        self.offset, self.length, self.at = blob.offset, here if blob.length < 0 else blob.length, 0
        if here < self.length:
            self.close()
            raise DataError(
                f"{blob.path}: {max(here, 0)} bytes at offset {blob.offset}, expected {self.length}; was it cut short?"
            )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self.length - self.at))
        found = os.preadv(self.file.fileno(), [memoryview(buffer)[:wanted]], self.offset + self.at) if wanted else 0
        self.at += found
        return found

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        if start + place < 0:
            raise OSError(f"a seek to {start + place}, before the start")
        self.at = start + place
        return self.at

    def tell(self) -> int:
        return self.at

    def close(self) -> None:
        self.file.close()
        super().close()
