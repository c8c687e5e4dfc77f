"""An Item in a line, for a person: texts as they are, media by their sizes. Nothing is decoded."""

from __future__ import annotations

from collections.abc import Mapping

from .types import Audio, Events, Image, Item, Part, Text, Video

LONGEST = 200  # characters of a text


def told(item: Item) -> str:
    """`a red circle <image 224x224>`"""
    return " ".join(_part(p) for p in item.parts)


def told_fields(fields: Mapping[str, Item]) -> dict[str, str]:
    """Each named field in a line, by name: {"title": "a red circle"}."""
    return {name: told(item) for name, item in sorted(fields.items())}


def _part(part: Part) -> str:
    match part:
        case Text(text):
            return text if len(text) <= LONGEST else text[:LONGEST] + f"… ({len(text):,} characters)"
        case Image():
            return f"<image {part.width}x{part.height}>"
        case Video():
            return f"<video {part.width}x{part.height}, {part.frames} frames, {part.seconds:.1f} s>"
        case Audio():
            return f"<audio {part.seconds:.1f} s at {part.rate} Hz>"
        case Events():
            return f"<{len(part.events)} events>"
