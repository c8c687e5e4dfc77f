"""A folder of Parquet tables, one or several files a split, and the folders of shards that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..index import full_digest
from ..parts import Kind, probe
from ..shards import write_shards
from ..tables import cells
from ..types import Blob, DataError, Example, Item, Text

Row = Mapping[str, Any]
Splits = dict[str, list[Row]]  # "train", "test", ...: whatever the folder holds
Tasks = Iterable[tuple[str, str, list[Example]]]  # (split, task, its rows)


def splits(root: str, columns: Sequence[str]) -> Splits:
    """The rows of every split in the folder: train.parquet, test-00000-of-00002.parquet, ... Raises DataError where
    there is none, and for a missing column."""
    found: Splits = {}
    for path in sorted(Path(root).glob("*.parquet")):
        split = path.stem.split("-")[0]
        found.setdefault(split, []).extend(cells(path, columns))
    if not found:
        raise DataError(f"{root}: no train.parquet, test.parquet or other *.parquet in it; name the folder of the set")
    return found


def outside(root: str) -> dict[str, str]:
    """The digests of a folder's files, so that a step is done anew when they change."""
    return {
        f"{Path(root).name}/{path.name}": full_digest(path) for path in sorted(Path(root).iterdir()) if path.is_file()
    }


def write(out: Path, tasks: Tasks) -> None:
    """Writes each task to out/SPLIT/TASK. Keys are TASK/SPLIT-000000/000012, so that no two splits share one."""
    for split, task, rows in tasks:
        if rows:
            write_shards(rows, out / split / task, prefix=split)


def unseen(found: Splits, key: Callable[[Row], Hashable]) -> Splits:
    """The splits, without those train rows whose key another split has too: some sources repeat rows across splits."""
    judged = {key(row) for split, rows in found.items() if split != "train" for row in rows}
    return {s: [r for r in rows if s != "train" or key(r) not in judged] for s, rows in found.items()}


def medium(kind: Kind, data: bytes, where: str) -> Item:
    """One picture, clip or sound, probed for its size."""
    return Item((probe(kind, Blob(data), where),))


def joined(*items: Item | str) -> Item:
    """The parts of several items (a string is a text) in one."""
    return Item(tuple(p for i in items for p in ((Text(i),) if isinstance(i, str) else i.parts)))
