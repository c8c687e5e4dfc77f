"""Animated GIF, WebP and PNG: how long each frame stands, read from the chunk headers without decoding a pixel."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

from ..types import DataError

BLINK = 0.1  # seconds of a frame whose file says none, as browsers show it
FRESH = 0.011  # GIF and PNG delays below this are shown as BLINK too


def animated(data: bytes) -> bool:
    """Whether these bytes are a GIF, WebP or PNG, moving or not."""
    return data[:4] in (b"GIF8", b"\x89PNG") or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def durations(data: bytes, where: str, most: int | None = None) -> list[float]:
    """Seconds of each frame, at least one, at most `most`. Raises DataError where the file breaks off."""
    read = {b"GIF8": _gif, b"\x89PNG": _png, b"RIFF": _webp}[data[:4]]
    try:
        found = list(islice(read(data), most))
    except (struct.error, IndexError, ZeroDivisionError) as error:
        raise DataError(f"{where}: the clip breaks off after {len(data):,} bytes; replace or drop it") from error
    return [x if x >= FRESH else BLINK for x in found] or [BLINK]


def _webp(data: bytes) -> Iterator[float]:
    """ANMF chunks: the duration is 24 bits of milliseconds, 12 bytes into the frame."""
    at, end = 12, 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise IndexError
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"ANMF":
            yield int.from_bytes(data[at + 20 : at + 23], "little") / 1000
        at += 8 + size + size % 2


def _png(data: bytes) -> Iterator[float]:
    """fcTL chunks: a delay as a fraction, 20 bytes into the frame's control."""
    at = 8
    while True:
        size, name = struct.unpack_from(">I4s", data, at)
        if name == b"IEND":
            return
        if name == b"fcTL":
            over, under = struct.unpack_from(">HH", data, at + 28)
            yield over / (under or 100)
        at += 12 + size


def _gif(data: bytes) -> Iterator[float]:
    """Graphic control extensions (delay in hundredths) before image descriptors; the rest is skipped by length."""

    def table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    def after_blocks(at: int) -> int:
        while data[at]:
            at += data[at] + 1
        return at + 1

    at, delay = 13 + table(data[10]), 0.0
    while data[at] != 0x3B:
        if data[at] == 0x21:
            if data[at + 1] == 0xF9:
                delay = struct.unpack_from("<H", data, at + 4)[0] / 100
            at = after_blocks(at + 2)
        elif data[at] == 0x2C:
            yield delay
            at, delay = after_blocks(at + 11 + table(data[at + 9])), 0.0
        else:
            raise IndexError
