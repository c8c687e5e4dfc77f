"""Packing: a table and its media folder -> shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..mapping import examples
from ..shards import write_shards
from ..tables import count
from ..types import Progress


def pack(
    path: Path,
    out: Path,
    *,
    columns: Mapping[str, str] | None = None,
    media: str = "",
    task: str = "retrieval",
    source: str = "",
    max_bytes: int = 256 << 20,
    progress: Progress | None = None,
) -> list[Path]:
    """Packs JSON lines, CSV or Parquet (a file, or a folder of them) into shards in `out`; returns their paths.

    columns: which column is what (docs/your_data.md); none for JSON lines of whole rows. media: the folder that media
    paths are relative to, by default the table's own. task, source: of rows that do not say so themselves. progress is
    told (rows done, rows in all). Raises DataError naming file, row and column; then nothing is left in `out`.
    """
    total = count(path) if progress is not None else 0
    told = None if progress is None else lambda done, _: progress(done, total)
    rows = examples(path, columns=columns or {}, media=media, task=task, source=source)
    return write_shards(rows, out, max_bytes=max_bytes, progress=told)
