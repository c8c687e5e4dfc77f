"""Modalities: one file each, and KINDS, the one table in which a name or bytes choose among them.

Importing this package reads no codec: each module is imported when its kind is first met.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import PurePath
from typing import Literal

from ..types import Blob, DataError, Part

Kind = Literal["image", "video", "audio"]

# kind -> the file endings that mean it; the module of the same name reads it. GIF, WebP and PNG may be animated: a row
# that means the clip says so by naming its part "video".
KINDS: dict[str, tuple[str, ...]] = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif"),
    "video": (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".apng"),
    "audio": (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"),
}


def kind_of(name: str) -> Kind:
    """The kind that a file's ending means. Raises DataError for an ending that no kind claims."""
    ending = PurePath(name).suffix.lower()
    for kind, endings in KINDS.items():
        if ending in endings:
            return kind  # type: ignore[return-value]
    known = " ".join(e for endings in KINDS.values() for e in endings)
    raise DataError(f"{name}: no kind of medium has the ending {ending or '(none)'!r}; known are {known}")


def probe(kind: Kind, blob: Blob, where: str) -> Part:
    """The part of this kind, its sizes read from the header alone. `where` names file and key in errors."""
    if kind not in KINDS:
        raise DataError(f"{where}: unknown kind of medium {kind!r}; known are {', '.join(KINDS)}")
    part: Part = import_module(f".{kind}", __package__).probe(blob, where)
    return part
