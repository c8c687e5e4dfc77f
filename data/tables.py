"""Tables: the rows of JSON lines, CSV and Parquet files as dicts, one at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .types import DataError

Cells = Mapping[str, Any]  # one row: column -> value

ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
JSON_LINES = (".jsonl", ".ndjson")
_ROWS = 64  # of a Parquet file, decoded at a time: rows may hold pictures


def files(path: Path) -> list[Path]:
    """The table itself, or every table of a folder by name. Raises DataError where there is none."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
        if not found:
            raise DataError(f"{path}: no table in it; known are {', '.join(ENDINGS)}")
        return found
    if not path.is_file():
        raise DataError(f"{path}: no such table")
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path}: a table ends in {', '.join(ENDINGS)}, this in {path.suffix or 'nothing'}")
    return [path]


def count(path: Path) -> int:
    """Rows of a table or of a folder's tables."""
    total = 0
    for file in files(path):
        if file.suffix.lower() == ".parquet":
            total += _parquet(file).metadata.num_rows
        else:
            total += sum(1 for _ in cells(file, None))
    return total


def cells(file: Path, columns: Sequence[str] | None) -> Iterator[Cells]:
    """The rows of one table as dicts; with `columns`, those must be there."""
    ending = file.suffix.lower()
    reader = _json_lines if ending in JSON_LINES else _csv if ending in (".csv", ".tsv") else _parquet_rows
    for i, row in enumerate(reader(file, columns)):
        for column in columns or ():
            # JSON lines leave empty fields out, so only a table with a head can lack a column.
            if column not in row and ending not in JSON_LINES:
                there = ", ".join(map(repr, row))
                raise DataError(f"{file}: row {i}: no column {column!r}; there are {there}{_parted(file, row)}")
        yield row


def _json_lines(file: Path, columns: Sequence[str] | None) -> Iterator[Cells]:
    with file.open("rb") as lines:
        for i, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}: line {i + 1} is not JSON ({error})") from None
            if not isinstance(cells, dict):
                raise DataError(f"{file}: line {i + 1} is a {type(cells).__name__}, expected one JSON object a line")
            yield cells


def _csv(file: Path, columns: Sequence[str] | None) -> Iterator[Cells]:
    csv.field_size_limit(1 << 30)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=_delimiter(file))
        try:
            for i, cells in enumerate(reader):
                if None in cells:
                    more = cells.pop(None)
                    raise DataError(
                        f"{file}: row {i} (to line {reader.line_num}) has more cells than the head: {more}; "
                        f"quote cells that hold the delimiter{_parted(file, cells)}"
                    )
                yield {column: _listed(value) for column, value in cells.items()}
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: {_not_utf8(file, error)}; save the table as UTF-8") from None
        except csv.Error as error:
            raise DataError(f"{file}: line {reader.line_num} is not CSV ({error})") from None


def _delimiter(file: Path) -> str:
    return "\t" if file.suffix.lower() == ".tsv" else ","


def _parted(file: Path, row: Cells) -> str:
    """Advice where the head is one cell that other signs part; nothing elsewhere."""
    names = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
    if file.suffix.lower() not in (".csv", ".tsv") or len(row) != 1:
        return ""
    own = _delimiter(file)
    found = [names[sign] for sign in names if sign != own and sign in next(iter(row))]
    if not found:
        return ""
    return f"; its cells are parted by {found[0]}, but a {file.suffix}'s by {names[own]}: save it so"


def _not_utf8(file: Path, error: UnicodeDecodeError) -> str:
    """The line with the fault: the reader decodes ahead of the rows that it gives."""
    with file.open("rb") as lines:
        for i, line in enumerate(lines):
            try:
                line.decode()
            except UnicodeDecodeError as here:
                return f"line {i + 1} is not UTF-8 (byte 0x{line[here.start]:02x} behind {line[: here.start]!r:.60})"
    return f"not UTF-8 ({error})"


def _listed(value: str | None) -> Any:
    """A cell that holds a JSON list is that list."""
    if value and value.startswith("[") and value.endswith("]"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _parquet(file: Path) -> Any:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(file)
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not a whole Parquet file ({error})") from None


def _parquet_rows(file: Path, columns: Sequence[str] | None) -> Iterator[Cells]:
    table = _parquet(file)
    present = table.schema_arrow.names
    for batch in table.iter_batches(_ROWS, columns=[c for c in columns if c in present] if columns else None):
        yield from batch.to_pylist()
