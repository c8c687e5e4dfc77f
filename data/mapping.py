"""Rows of a table -> Examples, through a mapping of columns.

The mapping says of each field where it comes from; docs/your_data.md has the grammar with examples:
    {"query": "image:photo + text:question", "positives": "text:answer", "negatives": "text:wrong_1 | text:wrong_2",
     "label": "category", "instruction": "=Answer the question.", "scores.label": "similarity"}
    {"fields.image": "image:photo", "fields.title": "text:title", "fields.item": "text:name", "fields.item.id": "sku"}
JSON lines without a mapping hold rows as docs/shards.md has them, media given by their paths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .parts import KINDS, Kind, probe
from .patterns import NAME, OWN
from .referred import Referred
from .rows import Find, check, event, parse, to_example
from .tables import JSON_LINES, Cells, cells, files
from .types import Blob, DataError, Events, Example, Item, Part, Text

ITEMS = ("query", "positives", "negatives")
TOGETHER = "query"  # of which a row has one: a list gives several parts of it, as in a field
IDS = {"query_id": "query", "positive_ids": "positives", "negative_ids": "negatives"}
TEXTS = ("label", "answer", "instruction", "target_instruction", "task")
SCORES = "scores."
FIELD, ID = "fields.", ".id"
EMPTY = (None, "", b"")  # cells that leave their part out


@dataclass(frozen=True)
class Column:
    """One part of an Item: the medium or text `kind` from `column`."""

    kind: str  # text, image, video, audio or events
    column: str


@dataclass(frozen=True)
class Mapped:
    """A checked mapping. Each alternative of an Item field is a tuple of parts; each gives one Item (or, from lists,
    several)."""

    items: Mapping[str, tuple[tuple[Column, ...], ...]]
    others: Mapping[str, str]  # field -> column, or "=the text itself"

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The names of the named fields."""
        return tuple(name.removeprefix(FIELD) for name in self.items if name.startswith(FIELD))

    @property
    def columns(self) -> list[str]:
        """Every column that is read, once."""
        items = (p.column for alternatives in self.items.values() for parts in alternatives for p in parts)
        others = (column for column in self.others.values() if not column.startswith("="))
        return list(dict.fromkeys([*items, *others]))


def mapped(columns: Mapping[str, str], where: str) -> Mapped:
    """Reads a mapping. Raises DataError for an unknown field or kind, and where query or positives are missing."""
    items: dict[str, tuple[tuple[Column, ...], ...]] = {}
    others: dict[str, str] = {}
    for name, spec in columns.items():
        if name in ITEMS or (name.startswith(FIELD) and name.count(".") == 1):
            items[name] = tuple(
                tuple(_column(part, name, where) for part in alternative.split(" + "))
                for alternative in spec.split(" | ")
            )
        elif name in (*TEXTS, *IDS, "known") or (name.startswith((SCORES, FIELD)) and name != SCORES):
            others[name] = spec
        else:
            known = ", ".join((*ITEMS, *IDS, "known", *TEXTS, f"{SCORES}NAME", f"{FIELD}NAME", f"{FIELD}NAME{ID}"))
            raise DataError(f"{where}: columns has an unknown field {name!r}; known are {known}")
    found = Mapped(items, others)
    _check_ids(found, where)
    for name in () if found.fields else ("query", "positives"):
        if name not in items:
            raise DataError(
                f'{where}: columns says nothing of {name}; give {{"{name}": "text:COLUMN"}} or another kind'
            )
    _check(found, where)
    return found


def _check_ids(found: Mapped, where: str) -> None:
    for name in found.others:
        of = name.removesuffix(ID)
        if name.startswith(FIELD) and (of == name or of not in found.items):
            missing = f"{of} is missing; give {of}=KIND:COLUMN, too" if of != name else f"expected {FIELD}NAME{ID}"
            raise DataError(f"{where}: columns[{name!r}] is the id of no field: {missing}")


def _check(found: Mapped, where: str) -> None:
    """Raises DataError for a name that no field can have, and several Items where a row has one."""
    for name in found.fields:
        if not NAME.fullmatch(name) or name in OWN:
            raise DataError(
                f"{where}: columns has a field {name!r}; expected a name of a-z, 0-9 and _, and not {' or '.join(OWN)}"
            )
    for name, alternatives in found.items.items():
        if len(alternatives) > 1 and (name == TOGETHER or name.startswith(FIELD)):
            raise DataError(f"{where}: a row has one {name}; join its parts by ' + ', not by ' | '")


def _column(spec: str, name: str, where: str) -> Column:
    kind, colon, column = spec.strip().partition(":")
    if not colon or not column or kind not in ("text", *KINDS, "events"):
        raise DataError(
            f"{where}: columns[{name!r}] has {spec!r}; expected KIND:COLUMN, KIND of text, {', '.join(KINDS)}, events"
        )
    return Column(kind, column)


def examples(
    path: Path, *, columns: Mapping[str, str], media: str = "", task: str = "retrieval", source: str = ""
) -> Iterator[Example]:
    """The Examples of a table or of a folder's tables, in order, each medium probed for its size.

    columns: see above; empty for JSON lines of whole rows. media: the folder that media paths are relative to and stay
    in; by default the table's own. task, source: of rows that do not say so themselves; source by default the file's
    name. Raises DataError naming file, row and column.
    """
    for file in files(path):
        name = source or (path.name if path.is_dir() else file.stem)
        folder = Path(media) if media else file.parent
        if not folder.is_dir():
            raise DataError(f"{folder}: no such media folder")
        mapping = mapped(columns, str(file)) if columns else None
        if mapping is None and file.suffix.lower() not in JSON_LINES:
            raise DataError(
                f'{file}: say which columns are what: columns={{"query": "text:…", "positives": "image:…"}}'
            )
        for i, row in enumerate(cells(file, mapping.columns if mapping else None)):
            where, key = f"{file}: row {i}", f"{name}/{file.stem}/{i}"
            if mapping is None:
                parsed = parse(json.dumps({"task": task, "source": name, **row}).encode(), where)
                yield to_example(parsed, _finder(folder, where), key, where)
            else:
                yield _example(row, mapping, folder, key, name, task, where)


def _example(row: Cells, mapping: Mapped, folder: Path, key: str, source: str, task: str, where: str) -> Example:
    """One row through the mapping."""

    def items(field: str) -> tuple[Item, ...]:
        found = [
            item
            for parts in mapping.items.get(field, ())
            for item in _items(row, parts, folder, f"{where}: {field}", field == TOGETHER or field.startswith(FIELD))
        ]
        named = next((name for name, of in IDS.items() if of == field), field + ID)
        ids = _strings(_cell(row, mapping, named)) if found or not field.startswith(FIELD) else ()
        if ids and len(ids) != len(found):
            raise DataError(f"{where}: {len(ids)} ids for {len(found)} items of {field}; give one each")
        return tuple(Item(item.parts, given) for item, given in zip(found, ids, strict=True)) if ids else tuple(found)

    queries, fields = items("query"), {name: items(FIELD + name) for name in mapping.fields}
    if not queries and not any(fields.values()):
        wanted = [FIELD + name for name in mapping.fields] or ["query"]
        columns = ", ".join(repr(p.column) for name in wanted for p in mapping.items[name][0])
        what = "every field" if mapping.fields else "the query"
        raise DataError(f"{where}: {what} is empty, nothing is in {columns}; fill it or drop the row")
    texts = {name: _scalar(_cell(row, mapping, name)) for name in TEXTS}
    example = Example(
        key=key,
        source=source,
        query=queries[0] if queries else Item(()),
        positives=items("positives"),
        negatives=items("negatives"),
        known=_strings(_cell(row, mapping, "known")),
        scores={
            name.removeprefix(SCORES): _numbers(_cell(row, mapping, name), f"{where}: {name}")
            for name in mapping.others
            if name.startswith(SCORES) and _cell(row, mapping, name) is not None
        },
        fields={name: found[0] for name, found in fields.items() if found},
        **{**texts, "task": texts["task"] or task},
    )
    check(example, where)
    return example


def _items(row: Cells, parts: tuple[Column, ...], folder: Path, where: str, together: bool) -> Iterator[Item]:
    """The Items of one alternative: one, or one for each element where a column holds a list. `together`: a list gives
    several parts of one Item instead (a query of several pictures). Empty cells leave their part out."""
    values = [_values(row.get(p.column), p.kind) for p in parts]
    if together:
        made = [
            _part(p.kind, v, folder, where)
            for p, column in zip(parts, values, strict=True)
            for v in column[0]
            if v not in EMPTY
        ]
        if made:
            yield Item(tuple(made))
        return
    lengths = {len(column) for column, listed in values if listed}
    if len(lengths) > 1:
        named = ", ".join(f"{p.column!r} {len(v[0])}" for p, v in zip(parts, values, strict=True))
        raise DataError(f"{where}: lists of different lengths ({named}); parts of one item need equally many")
    for i in range(lengths.pop() if lengths else 1):
        here = [(p.kind, c[i] if listed else c[0] if c else None) for p, (c, listed) in zip(parts, values, strict=True)]
        made = [_part(kind, value, folder, where) for kind, value in here if value not in EMPTY]
        if made:
            yield Item(tuple(made))


def _values(value: Any, kind: str) -> tuple[list[Any], bool]:
    """A cell as (its elements, whether it was a list). A list of events is one value."""
    if isinstance(value, list) and not (kind == "events" and all(isinstance(v, dict) for v in value)):
        return value, True
    return ([] if value in EMPTY else [value]), False


def _part(kind: str, value: Any, folder: Path, where: str) -> Part:
    if kind == "text":
        return Text(_scalar(value))
    if kind == "events":
        if not isinstance(value, list) or not value:
            raise DataError(f'{where}: events are a list of {{"action", "text", "time"}}, got {value!r}')
        return Events(tuple(event(v, where) for v in value))
    # Parquet from the hub holds a picture as {"bytes": …, "path": …}.
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return probe(kind, Blob(value), where)  # type: ignore[arg-type]
    if isinstance(value, str):
        return _finder(folder, where)(kind, value)  # type: ignore[arg-type]
    raise DataError(f"{where}: {kind} is bytes or the path of a file, got a {type(value).__name__}")


def _finder(folder: Path, where: str) -> Find:
    """Finds media by path in `folder`, which a path must not leave: a table from elsewhere names no file outside it."""
    root = os.path.abspath(folder)  # noqa: PTH100  (resolve() would follow links, of which hub caches are made)

    def find(kind: Kind, name: str | Referred) -> Part:
        if isinstance(name, Referred):
            raise DataError(
                f"{where}: a row of a table names its {kind} by a path; only shards refer to bytes of another"
            )
        path = os.path.normpath(os.path.join(root, name))  # noqa: PTH118
        if not path.startswith(os.path.join(root, "")):  # noqa: PTH118
            raise DataError(f"{where}: {kind} {name!r} is outside the media folder {root}; name a folder that holds it")
        try:
            length = os.stat(path).st_size  # noqa: PTH116
        except OSError as error:
            raise DataError(f"{where}: no {kind} {name!r} in the media folder {root} ({error.strerror})") from None
        return probe(kind, Blob(path=path, offset=0, length=length), f"{where}: {name}")

    return find


def _cell(row: Cells, mapping: Mapped, field: str) -> Any:
    spec = mapping.others.get(field)
    if spec is None:
        return None
    return spec[1:] if spec.startswith("=") else row.get(spec)


def _scalar(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _strings(value: Any) -> tuple[str, ...]:
    if value in (None, ""):
        return ()
    return tuple(_scalar(v) for v in value) if isinstance(value, list) else (_scalar(value),)


def _numbers(value: Any, where: str) -> tuple[float, ...]:
    try:
        return tuple(float(v) for v in (value if isinstance(value, list) else [value]))
    except (TypeError, ValueError):
        raise DataError(f"{where}: expected a number or a list of numbers, got {value!r}") from None
