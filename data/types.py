"""The words everyone speaks: Part, Item, Example, Prompted, Clock, Limits, Cost, and the Step and Rows protocols.

Media stay encoded until a chunk is collated: a part holds a `Blob`, the address of its bytes, and the sizes that
the index recorded at packing, so that a batch is planned in tokens before a byte is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

Side = Literal["query", "target"]


class DataError(ValueError):
    """Bad input. The message says what is wrong, where (file, key) and what to do."""


@dataclass(frozen=True, slots=True)
class Blob:
    """The address of encoded bytes: in memory, or `length` bytes at `offset` of the file `path` (-1: to its end)."""

    data: bytes = b""
    path: str = ""
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        if not self.path:
            return self.data
        try:
            with Path(self.path).open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.length)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}; was it moved or removed since it was indexed?") from error
        if self.length >= 0 and len(data) != self.length:
            raise DataError(
                f"{self.path}: {len(data)} bytes at offset {self.offset}, expected {self.length}; was it cut short?"
            )
        return data


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded picture; `width` and `height` in pixels as displayed (EXIF orientation applied)."""

    blob: Blob
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Video:
    """An encoded clip: animated WebP/GIF/PNG (read by Pillow) or any container that PyAV opens."""

    blob: Blob
    width: int
    height: int
    frames: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Audio:
    """An encoded sound; `seconds` long at `rate` Hz."""

    blob: Blob
    seconds: float
    rate: int


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a person did: `action` ("viewed", "bought", "searched") on `text`, at `time` (Unix seconds)."""

    action: str
    text: str
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Events:
    """A person's behaviour in one named source, oldest first."""

    events: tuple[Event, ...]
    source: str = ""


Part = Text | Image | Video | Audio | Events


def digest(*pieces: bytes | str) -> str:
    """32 hex digits (BLAKE2b, 128 bits) of the pieces, each preceded by its length so that borders count."""
    h = blake2b(digest_size=16)
    for piece in pieces:
        raw = piece.encode() if isinstance(piece, str) else piece
        h.update(len(raw).to_bytes(8, "little"))
        h.update(raw)
    return h.hexdigest()


def _content(part: Part) -> tuple[bytes | str, ...]:
    match part:
        case Text(text):
            return ("text", text)
        case Events(events, source):
            return ("events", source, *(s for e in events for s in (e.action, e.text, repr(e.time))))
        case Image() | Video() | Audio():
            return (type(part).__name__.lower(), part.blob.read())


@dataclass(frozen=True)
class Item:
    """An ordered tuple of parts. `id` is its identity: equal ids are one thing, never each other's negatives."""

    parts: tuple[Part, ...]
    given_id: str = ""

    @cached_property
    def id(self) -> str:
        """The given identity, or the digest of the content (it reads every medium's bytes: shards record it)."""
        return self.given_id or digest(*(x for p in self.parts for x in _content(p)))

    @staticmethod
    def text(text: str) -> Item:
        return Item((Text(text),))


@dataclass(frozen=True)
class Example:
    """A query with its right and wrong answers. Fields as in docs/shards.md."""

    key: str  # "source/shard/index", "#pattern" behind it where a row serves several; stable for ever
    source: str
    task: str  # a kind that eval knows: retrieval, classification, vqa, grounding, sts
    query: Item
    positives: tuple[Item, ...]
    negatives: tuple[Item, ...] = ()
    known: tuple[str, ...] = ()  # ids of all right answers, drawn or not
    label: str = ""  # class of the query; equal classes can be masked
    instruction: str = ""
    target_instruction: str = ""
    answer: str = ""  # autoregressive target; empty: none
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # one per positive, then per negative
    fields: Mapping[str, Item] = field(default_factory=dict)  # named Items of which patterns form query and target


@dataclass(frozen=True)
class Prompted:
    """What a template renders: one Item on one side, its instruction, demonstrations and answer to generate."""

    item: Item
    side: Side = "query"
    instruction: str = ""
    shots: tuple[tuple[Item, Item], ...] = ()
    answer: str = ""
    key: str = ""  # of its Example, for errors
    group: int = 0  # index of its source in the stage


@dataclass(frozen=True)
class Clock:
    """Where training stands: every schedule and random draw hangs on it. `progress` goes from 0 to 1 in a stage."""

    step: int
    progress: float
    seed: int


@dataclass(frozen=True)
class Limits:
    """What an Item may cost. Demonstrations are left out first, then pictures and frames shrink, then the longest text
    is cut; never the template's tail, media tokens or embedding tokens. Pixels are per picture or frame, after the
    resize."""

    max_tokens: int = 2048
    max_pixels: int = 1280 * 28 * 28
    min_pixels: int = 4 * 28 * 28
    max_frames: int = 64
    fps: float = 2.0
    max_video_pixels: int = 256 * 28 * 28  # of one frame
    draft: bool = False  # reduced JPEG decode, for training only


@dataclass(frozen=True)
class Cost:
    """What one Prompted costs, known before a byte is decoded."""

    tokens: int  # of the whole segment, answer included
    labels: int = 0  # positions with a next-token label
    towers: tuple[str, ...] = ()  # media in it: "image", "video", "audio"
    shrunk: bool = False  # media were resized below what Limits alone would give, to fit max_tokens
    cut: int = 0  # text tokens cut off to fit max_tokens
    left: int = 0  # demonstrations left out to fit max_tokens


class Where(Protocol):
    """The folder in which a finished step left its output."""

    def __call__(self, step: Step) -> Path: ...


@runtime_checkable
class Step(Protocol):
    """A frozen value in a recipe. It holds, as fields, the steps that it needs; `make` fills the empty folder `out`."""

    @property
    def name(self) -> str: ...

    def make(self, out: Path, where: Where) -> None: ...


class Rows(Protocol):
    """Examples with random access, opened from a Source. `digest` names the content: equal digests, equal rows."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class Source(Protocol):
    """A frozen value in a recipe that says where rows come from; opening it needs the folders of finished steps."""

    @property
    def name(self) -> str: ...

    def open(self, where: Where) -> Rows: ...


Progress = Callable[[int, int], None]  # (done, total)
