"""Inputs of a person to a file of vectors: texts, media files, JSON lines and shards, with an identity for every row.

vectors.safetensors holds `vectors` (n, D) float32 of unit length; vectors.ids.jsonl beside it one line for each row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.types import DataError, Item, Side
from .show import tars

if TYPE_CHECKING:
    from ..model.types import Encoder

MEDIA = ("image", "video", "audio")
TABLES = (".jsonl", ".jsonlines", ".ndjson")


@dataclass(frozen=True)
class Named:
    """One Item to embed. id: what a search will answer with; source: where it was found."""

    item: Item
    id: str
    source: str


def load_model(path: str) -> Encoder:
    """An encoder by name (model.encoder); what is wrong with it is bad input, not a fault of this program."""
    from ..model.encoder import load_encoder

    try:
        return load_encoder(path)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"model {path}: {error}") from error


def embed(model: str, inputs: Sequence[str], out: Path, instruction: str = "", side: Side = "query") -> tuple[int, int]:
    """Writes vectors and identities; returns (n, D). Raises DataError naming the input that cannot be read."""
    from safetensors.torch import save_file

    if out.suffix != ".safetensors":
        raise DataError(f"--out {out}: vectors are written as safetensors; end the name in .safetensors.")
    rows = list(gather(inputs, side))
    embedder = load_model(model)
    vectors = embedder.encode_items([r.item for r in rows], side=side, instruction=instruction, progress="embedding")
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": embedder.digest, "side": side, "instruction": instruction}
    aside = out.with_name(f".{out.name}.part")
    save_file({"vectors": vectors.contiguous()}, aside, metadata=about)
    ids = out.with_suffix(".ids.jsonl")
    ids_aside = ids.with_name(f".{ids.name}.part")
    with ids_aside.open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            file.write(json.dumps({"row": i, "id": row.id, "input": row.source}, ensure_ascii=False) + "\n")
    ids_aside.replace(ids)
    aside.replace(out)
    return len(rows), vectors.shape[1]


def gather(inputs: Sequence[str], side: Side) -> Iterator[Named]:
    """Every Item that the inputs name, in order."""
    for word in inputs:
        path = Path(word)
        if path.is_dir() or (path.suffix == ".tar" and path.is_file()):
            yield from _shards(path, side)
        elif path.suffix.lower() in TABLES and path.is_file():
            yield from _lines(path)
        elif path.is_file():
            yield Named(_item(path, word), path.name, word)
        elif _looks_like_file(word):
            raise DataError(f"{word}: no such file. (To embed these words as a text, put a space behind them.)")
        else:
            item = Item.text(word)
            yield Named(item, item.id, word)


def _looks_like_file(word: str) -> bool:
    from ..model.encode import SUFFIXES

    suffix = Path(word).suffix.lower() if "\n" not in word and len(word) < 4096 else ""
    return suffix in SUFFIXES or suffix in (".tar", *TABLES)


def _item(value: Any, where: str) -> Item:
    """What `Embedder.encode` would make of it; a medium that cannot be read is told by the name of its input."""
    from ..model.encode import as_items

    try:
        return as_items(value)[0][0]
    except (ValueError, FileNotFoundError) as error:
        raise DataError(f"{where}: {str(error).removeprefix('input 0: ')}") from error


def _lines(path: Path) -> Iterator[Named]:
    """JSON lines: {"id": "…", "text": "…", "image": "relative/path.jpg"}, parts in the order of their keys."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: not JSON ({error}).") from None
            if not isinstance(row, dict):
                raise DataError(f'{where}: expected an object such as {{"text": "…", "image": "a.jpg"}}.')
            identity = str(row.pop("id", f"{path.name}:{number}"))
            parts = {k: _beside(path, v) if k in MEDIA else v for k, v in row.items()}
            if not parts:
                raise DataError(f"{where}: nothing to embed; give text, {', '.join(MEDIA)}.")
            yield Named(_item(parts, where), identity, where)


def _beside(path: Path, value: Any) -> Any:
    """Media of a file of lines are named relative to it."""
    if isinstance(value, list):
        return [_beside(path, v) for v in value]
    return path.parent / value if isinstance(value, str) else value


def _shards(path: Path, side: Side) -> Iterator[Named]:
    """The queries of shards, or (side "target") every distinct document."""
    from ..data.shards import Shard

    seen: set[str] = set()
    for tar in tars([path]):
        shard = Shard(tar)
        for index in range(len(shard)):
            example = shard.example(index)
            if side == "query":
                yield Named(example.query, example.key, str(tar))
                continue
            for item in (*example.positives, *example.negatives):
                if item.id not in seen:
                    seen.add(item.id)
                    yield Named(item, item.id, str(tar))
