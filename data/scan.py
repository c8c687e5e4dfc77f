"""Scanning a tar: every sound sample with its row, the index built from them, and the index beside a tar, opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .index import Builder, Index, index_path, quick_digest
from .parts import Kind, probe
from .rows import combination, names, parse
from .tars import Readable, Sample, Tell, raising, samples
from .types import Blob, DataError


def build_index(path: Path) -> Path:
    """Walks a tar, probes its media, and writes the index beside it. Raises DataError at the first fault."""
    builder, fault = Builder(), raising(str(path))
    with path.open("rb") as file:
        for sample, row, kinds in rows(file, str(path), fault):
            media = sample.media
            at = []
            for name, kind in kinds.items():
                part = probe(kind, Blob(media[name].data), f"{path}: sample {sample.key}: {name}")
                at.append((name, part, media[name].offset, len(media[name].data)))
            assert sample.json is not None
            fields = combination(
                row.get("fields", ()), bool(row.get("query", {}).get("parts")), bool(row.get("positives"))
            )
            json_at = (sample.json.offset, len(sample.json.data))
            builder.add(sample.key, row["source"], row["task"], json_at, at, fields)
    if not len(builder):
        raise DataError(f"{path}: no samples in it; delete it or pack it anew")
    builder.write(index_path(path), path)
    return index_path(path)


def opened_index(path: Path) -> Index:
    """The index beside a tar, built where it is missing. Raises DataError where it is that of another tar, or empty."""
    if not path.is_file():
        raise DataError(f"{path}: no such shard")
    beside = index_path(path)
    if not beside.exists():
        build_index(path)
    index = Index.read(beside)
    if index.about["tar_quick"] != quick_digest(path):
        raise DataError(
            f"{beside}: is the index of another tar ({index.about['tar_bytes']:,} bytes there, "
            f"{path.stat().st_size:,} here); delete it, it is built again from the tar"
        )
    if not len(index):
        raise DataError(f"{path}: no samples in it; delete it or pack it anew")
    return index


def rows(file: Readable, where: str, fault: Tell) -> Iterator[tuple[Sample, dict[str, Any], dict[str, Kind]]]:
    """(sample, its row, the kind of each medium by name) of a tar in order. Tells `fault` of every row that is not
    sound, of media that are named and missing, and of members that no row names (which are left out)."""
    for sample in samples(file, fault):
        assert sample.json is not None
        try:
            row = parse(sample.json.data, "")
            kinds = names(row, "")
        except DataError as error:
            fault(sample.key, str(error).removeprefix(": "))
            continue
        for name in sorted(sample.media.keys() - kinds.keys()):
            fault(sample.key, f"member {name!r} is not named by the JSON; name it in a part or leave it out")
        missing = sorted(kinds.keys() - sample.media.keys())
        for name in missing:
            fault(sample.key, f"medium {name!r} is named by the JSON but not in the tar; pack it anew")
        if not missing:
            yield sample, row, kinds
