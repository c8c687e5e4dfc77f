"""Rows <-> Examples: the JSON of one sample, which names its media, and the Example that it stands for.

docs/shards.md has every field. An unknown field is an error: a misspelt one would be lost in silence.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .parts import Kind
from .patterns import NAME, OWN, blank
from .referred import Referred, Roots
from .types import Audio, DataError, Event, Events, Example, Image, Item, Part, Text, Video

MEDIA: dict[Kind, type] = {"image": Image, "video": Video, "audio": Audio}
FIELDS = (
    *("task", "source", "instruction", "target_instruction", "query", "positives", "negatives"),
    *("known", "label", "answer", "scores", "fields"),
)

_FIELDS, _ITEM = frozenset(FIELDS), frozenset(("id", "parts"))

# (kind, name of the medium, or where it lies outside the shard) -> the medium
Find = Callable[[Kind, str | Referred], Part]


@dataclass(frozen=True, slots=True)
class Medium:
    """One medium of a sample: member `KEY.name` holding `data`, or, `outside`, the file `name` of a media folder."""

    name: str
    part: Image | Video | Audio
    data: bytes
    outside: bool = False


def kind_of(part: Image | Video | Audio) -> Kind:
    return next(kind for kind, of in MEDIA.items() if isinstance(part, of))


_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"\x1aE\xdf\xa3", "mkv"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"ID3", "mp3"),
    (b"\xff\xfb", "mp3"),
)


def extension(data: bytes, kind: str) -> str:
    """The file ending that the first bytes speak of, else the kind's own word. Readers go by the bytes."""
    if data[:4] == b"RIFF":
        return {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}.get(data[8:12], kind)
    if data[4:8] == b"ftyp":
        return "avif" if data[8:12] in (b"avif", b"avis") else "m4a" if kind == "audio" else "mp4"
    return next((ending for magic, ending in _MAGIC if data.startswith(magic)), kind)


def check(example: Example, where: str) -> None:
    """Raises DataError for an Example that no objective and no evaluation could use."""
    if not example.task or not example.source:
        raise DataError(f"{where}: task {example.task!r} and source {example.source!r} must both be given")
    if not (example.positives or example.fields):
        raise DataError(f"{where}: no positive; every sample needs one right answer (sts: the other text of the pair)")
    for side, items in (("query", (example.query,)), ("positive", example.positives), ("negative", example.negatives)):
        for item in items:
            if not item.parts and not (side == "query" and example.fields):
                raise DataError(f"{where}: a {side} without parts; give it a text or a medium")
            if item.parts and blank(item.parts[0]) and all(map(blank, item.parts)):
                raise DataError(f"{where}: a {side} of nothing but empty text; fill it or drop the row")
    for name, item in example.fields.items():
        _check_field(name, item, where)
    expected = len(example.positives) + len(example.negatives)
    for name, scores in example.scores.items():
        if len(scores) != expected:
            raise DataError(
                f"{where}: {len(scores)} scores {name!r}, expected {expected}: one per positive, then one per negative"
            )
        if not all(math.isfinite(s) for s in scores):
            raise DataError(
                f"{where}: scores {name!r} hold NaN or infinity; leave the name out where a score is unknown"
            )


def _check_field(name: str, item: Item, where: str) -> None:
    if not NAME.fullmatch(name) or name in OWN:
        own = f"; {' and '.join(OWN)} are the row's own query and positives" if name in OWN else ""
        raise DataError(f"{where}: a field cannot be called {name!r}; expected a name of a-z, 0-9 and _{own}")
    if not item.parts:
        raise DataError(f"{where}: field {name!r} without parts; leave it out where the row has none")
    if any(blank(part) for part in item.parts):
        raise DataError(f"{where}: field {name!r} holds an empty text; leave it out where the row has none")


def combination(fields: Iterable[str], query: bool, positives: bool) -> tuple[str, ...]:
    """The fields that patterns find in a row, as the index counts them; none for a row without fields of its own."""
    named = tuple(fields)
    return (*named, *(["query"] if query else []), *(["target"] if positives else [])) if named else ()


def to_row(
    example: Example, where: str = "", outside: str = "", roots: Roots | None = None
) -> tuple[bytes, list[Medium]]:
    """The JSON bytes (sorted keys, empty fields left out) and the media, each distinct one once.

    With `outside`, a media folder, a medium that is a file of its own in there stays where it is and is named by its
    path from there. With `roots`, a medium that is in a file at all is referred to.
    """
    where = where or f"key {example.key}"
    check(example, where)
    media: dict[tuple[str, bytes], Medium] = {}

    def medium(part: Image | Video | Audio, name: str) -> Medium:
        kind, data = kind_of(part), part.blob.read()
        if outside and part.blob.path and part.blob.offset == 0:
            path = os.path.relpath(part.blob.path, outside)
            if not path.startswith(os.pardir):
                return media.setdefault((kind, path.encode()), Medium(path, part, data, outside=True))
        return media.setdefault((kind, data), Medium(f"{name}.{extension(data, kind)}", part, data))

    def part_row(part: Part, name: str) -> dict[str, object]:
        match part:
            case Text(text):
                return {"text": text}
            case Events(events, source):
                rows = [{"action": e.action, "text": e.text, "time": e.time} for e in events]
                return {"events": rows, **({"source": source} if source else {})}
            case Image() | Video() | Audio():
                kind = kind_of(part)
                if roots is not None and part.blob.path:
                    return {kind: roots.refer(kind, part, where).row()}
                return {kind: medium(part, name).name}

    def item_row(item: Item, name: str) -> dict[str, object]:
        return {"id": item.id, "parts": [part_row(p, f"{name}.{i}") for i, p in enumerate(item.parts)]}

    row = {
        "task": example.task,
        "source": example.source,
        "instruction": example.instruction,
        "target_instruction": example.target_instruction,
        "query": item_row(example.query, "query") if example.query.parts else {},
        "positives": [item_row(item, f"positive.{i}") for i, item in enumerate(example.positives)],
        "negatives": [item_row(item, f"negative.{i}") for i, item in enumerate(example.negatives)],
        "known": list(example.known),
        "label": example.label,
        "answer": example.answer,
        "scores": {name: list(scores) for name, scores in example.scores.items()},
        # In the order of their names, in which they are read again: equal rows, equal shards.
        "fields": {name: item_row(item, f"field.{name}") for name, item in sorted(example.fields.items())},
    }
    kept = {field: value for field, value in row.items() if value}
    raw = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return raw.encode("utf-8"), list(media.values())


def parse(raw: bytes, where: str) -> dict[str, Any]:
    """The row as a dict whose field names are known. Raises DataError for anything but one JSON object of them."""
    try:
        row = json.loads(str(raw, "utf-8"))  # of bytes, it would first guess the encoding
    except ValueError as error:  # UnicodeDecodeError is one too
        raise DataError(f"{where}: the row is not JSON ({error}); pack it anew") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: the row is a {type(row).__name__}, expected an object with {', '.join(FIELDS)}")
    if not row.keys() <= _FIELDS:
        unknown = ", ".join(sorted(repr(f) for f in row.keys() - _FIELDS))
        raise DataError(f"{where}: unknown field {unknown}; a row has {', '.join(FIELDS)}")
    return row


def names(row: Mapping[str, Any], where: str) -> dict[str, Kind]:
    """Name -> kind of every medium that the row has in its shard, in order. Raises DataError for a row that is not
    sound."""
    found: dict[str, Kind] = {}

    def find(kind: Kind, name: str | Referred) -> Part:
        if isinstance(name, Referred):
            return Text(name.file)
        if found.setdefault(name, kind) != kind:
            raise DataError(f"{where}: medium {name!r} is both {found[name]} and {kind}; give each its own member")
        return Text(name)

    to_example(row, find, "", where)
    return found


def referred(row: Mapping[str, Any], where: str) -> list[Referred]:
    """Every medium of a sound row that lies outside its shard, each once."""
    found: dict[Referred, None] = {}

    def find(kind: Kind, name: str | Referred) -> Part:
        if isinstance(name, Referred):
            found[name] = None
        return Text("medium")

    to_example(row, find, "", where)
    return list(found)


def to_example(row: Mapping[str, Any], find: Find, key: str, where: str, source: str = "") -> Example:
    """The Example of a parsed row. `find` gives each medium; `source`, if given, takes the place of the row's own."""
    scores = row.get("scores", {})
    if not isinstance(scores, dict):
        raise DataError(f"{where}: scores must be an object of lists, got {_short(scores)}")
    fields = row.get("fields", {})
    if not isinstance(fields, dict):
        raise DataError(f'{where}: fields must be an object of items, {{"title": …}}, got {_short(fields)}')
    example = Example(
        key=key,
        source=source or _text(row, "source", where),
        task=_text(row, "task", where),
        query=_item(row.get("query"), find, f"{where}: query") if "query" in row or not fields else Item(()),
        positives=_items(row, "positives", find, where),
        negatives=_items(row, "negatives", find, where),
        known=tuple(_strings(row, "known", where)),
        label=_text(row, "label", where),
        instruction=_text(row, "instruction", where),
        target_instruction=_text(row, "target_instruction", where),
        answer=_text(row, "answer", where),
        scores={name: _floats(name, values, where) for name, values in scores.items()},
        fields={name: _item(item, find, f"{where}: field {name!r}") for name, item in fields.items()},
    )
    check(example, where)
    return example


def _items(row: Mapping[str, Any], field: str, find: Find, where: str) -> tuple[Item, ...]:
    return tuple(_item(item, find, f"{where}: {field}[{i}]") for i, item in enumerate(_list(row, field, where)))


def _item(row: Any, find: Find, where: str) -> Item:
    if not isinstance(row, dict) or not isinstance(parts := row.get("parts"), list):
        raise DataError(f'{where}: an item must be {{"id": …, "parts": […]}}, got {_short(row)}')
    if not row.keys() <= _ITEM:
        raise DataError(f"{where}: unknown field in an item: {_short(sorted(row.keys() - _ITEM))}; it has id, parts")
    return Item(tuple([_part(part, find, where) for part in parts]), _text(row, "id", where))


def _part(row: Any, find: Find, where: str) -> Part:
    if isinstance(row, dict) and len(row) == 1:
        ((kind, value),) = row.items()
        if isinstance(value, str):  # first and by hand: a match statement copies what it leaves over
            if kind == "text":
                return Text(value)
            if kind in MEDIA:
                return find(kind, value)
        elif kind in MEDIA and isinstance(value, dict):
            return find(kind, Referred.read(kind, value, where))
    match row:
        case {"events": list(events), **rest} if rest.keys() <= {"source"}:
            return Events(tuple(event(e, where) for e in events), _text(row, "source", where))
    raise DataError(
        f"{where}: a part is one of text, image, video, audio (a string) or events (a list), got {_short(row)}"
    )


def event(row: Any, where: str) -> Event:
    """One event of a row or of a table's column."""
    match row:
        case {"action": str(action), "text": str(text), **rest} if rest.keys() <= {"time"}:
            time = rest.get("time", 0.0)
            if isinstance(time, int | float):
                return Event(action, text, float(time))
    raise DataError(f'{where}: an event is {{"action": …, "text": …, "time": seconds}}, got {_short(row)}')


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field, "")
    if not isinstance(value, str):
        raise DataError(f"{where}: {field} must be a string, got {_short(value)}")
    return value


def _list(row: Mapping[str, Any], field: str, where: str) -> list[Any]:
    value = row.get(field, [])
    if not isinstance(value, list):
        raise DataError(f"{where}: {field} must be a list, got {_short(value)}")
    return value


def _strings(row: Mapping[str, Any], field: str, where: str) -> list[str]:
    value = _list(row, field, where)
    if not all(isinstance(v, str) for v in value):
        raise DataError(f"{where}: {field} must be a list of strings, got {_short(value)}")
    return value


def _floats(name: str, values: object, where: str) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        raise DataError(f"{where}: scores {name!r} must be a list of numbers, got {_short(values)}")
    return tuple(float(v) for v in values)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
