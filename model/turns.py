"""What a prompt says, before any chat template: turns of media and tagged texts; and the tags' ranges after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ..data.types import Audio, Events, Image, Part, Text, Video
from .skeleton import Piece, Place, Slot

Medium = Image | Video | Audio
Range = tuple[int, int]  # of characters: [start, end)
Tag = Literal["fixed", "instruction", "shot", "text", "events", "media"]


@dataclass
class Entry:
    """One entry of a turn's content: a medium, or a text of segments. An open text takes the next text into itself."""

    medium: Medium | None = None
    segments: list[tuple[Tag, str]] = field(default_factory=list)
    open: bool = False
    tag: Tag = "media"  # of a medium: "shot" in a demonstration

    @property
    def kind(self) -> str:
        if self.medium is not None:
            return type(self.medium).__name__.lower()
        return "text" if any(text for _, text in self.segments) else "blank"


@dataclass
class Turn:
    role: str
    entries: list[Entry] = field(default_factory=list)

    def say(self, tag: Tag, text: str, open: bool = False) -> None:  # noqa: A002 (the field's name)
        if not (self.entries and self.entries[-1].open):
            self.entries.append(Entry())
        self.entries[-1].segments.append((tag, text))
        self.entries[-1].open = open

    def add(self, part: Part, tag: Tag = "text", after: bool = False) -> None:
        """`after`: the text that follows belongs to the same entry."""
        match part:
            case Text(text):
                self.say(tag, text, open=after)
            case Events(events, source):
                name = source or "events"
                self.say("fixed", f"<{name}>\n", open=True)
                lines = "\n".join(f"{e.action}: {e.text}" if e.action else e.text for e in events)
                self.say("events" if tag == "text" else tag, lines, open=True)
                self.say("fixed", f"\n</{name}>", open=after)
            case _:
                self.entries.append(Entry(part, tag="shot" if tag == "shot" else "media"))


def fill(pieces: Iterable[Piece], entries: Iterable[Entry]) -> tuple[str, list[tuple[Tag, Range]]]:
    """The text, and the ranges of its tagged segments and media, in order. Empty segments have none."""
    entries = list(entries)
    texts = [e.segments for e in entries if e.kind == "text"]
    media: dict[str, list[Tag]] = {}  # by kind, in their order
    for e in entries:
        if e.medium is not None:
            media.setdefault(e.kind, []).append(e.tag)
    tags = {kind: iter(found) for kind, found in media.items()}
    out: list[str] = []
    spans: list[tuple[Tag, Range]] = []
    at = 0
    for piece in pieces:
        segments: list[tuple[Tag, str]] = [("fixed", piece)] if isinstance(piece, str) else []
        if isinstance(piece, Place):
            segments = [(next(tags[piece.kind]), piece.token)]
        elif isinstance(piece, Slot):
            segments = _strip(texts[piece.index], piece)
        for tag, text in segments:
            if tag != "fixed" and text:
                spans.append((tag, (at, at + len(text))))
            out.append(text)
            at += len(text)
    return "".join(out), spans


def joined(spans: Iterable[tuple[Tag, Range]], tag: Tag) -> list[tuple[Tag, Range]]:
    """The ranges, with those of `tag` that nothing but fixed text stands between made one: a demonstration's markers
    around its pictures belong to it."""
    out: list[tuple[Tag, Range]] = []
    for found, (start, end) in spans:
        if out and found == out[-1][0] == tag:
            out[-1] = (tag, (out[-1][1][0], end))
        else:
            out.append((found, (start, end)))
    return out


def _strip(segments: list[tuple[Tag, str]], slot: Slot) -> list[tuple[Tag, str]]:
    """The segments as the chat template leaves them: it may strip their joined text."""
    whole = "".join(text for _, text in segments)
    start = len(whole) - len(whole.lstrip()) if slot.lstrip else 0
    end = len(whole.rstrip()) if slot.rstrip else len(whole)
    out, at = [], 0
    for tag, text in segments:
        out.append((tag, text[max(0, start - at) : max(0, end - at)]))
        at += len(text)
    return out
