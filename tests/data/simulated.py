"""A catalogue of shards that are not there: sources of any size, to plan and to count, never to read."""

from __future__ import annotations

from pathlib import Path

from omni2vec.data.catalogue import NAME, Catalogue, Columns, Entry


def simulated(root: Path, shards: int, rows: int) -> Catalogue:
    """Written into the folder `root`: `shards` shards of `rows` rows each."""
    columns = Columns()
    for i in range(shards):
        told = f"{i:032x}"
        columns.add(Entry(f"shard-{i:06d}.tar", rows, 10_240, told, told, told, {"source:simulated": rows}))
    root.mkdir(parents=True, exist_ok=True)
    return Catalogue.of(root, columns).write(root / NAME)
