"""Whether models can be merged at all: the same tensors, of the same shapes, for the same words, used the same way.

What would make the result another function than its parts is refused; what the first model decides is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.types import DataError
from ..checkpoint import RECORD
from .weights import STOCK, Entry, Key, Tensors

_SETTINGS = ("pooling", "attention", "mask_instruction", "normalise", "projection")
_CONFIG = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "tie_word_embeddings")
_COMPARED = 1 << 22  # elements at a time


@dataclass(frozen=True)
class Model:
    """A model to be merged. folder: its own; stock: where its config.json is, the base's folder for an adapter."""

    tensors: Tensors
    folder: Path
    stock: Path

    @property
    def label(self) -> str:
        return self.tensors.label


@dataclass(frozen=True)
class Named:
    """Tensors under other names: a tied copy that a model did not save."""

    tensors: Tensors
    entries: Mapping[Key, Entry]
    lies: Mapping[Key, Key]

    @property
    def label(self) -> str:
        return self.tensors.label

    def read(self, key: Key, start: int, stop: int) -> Tensor:
        return self.tensors.read(self.lies.get(key, key), start, stop)


def same_files(models: Sequence[Model]) -> list[str]:
    """What differs beside the weights, in words, where the first model decides. Raises DataError where nothing may."""
    told = []
    for other in models[1:]:
        told += [*_settings(models[0], other), *same_class(models[0], other)]
    return list(dict.fromkeys(told))


def same_class(first: Model, other: Model) -> list[str]:
    """As `same_files`, of vocabulary and configuration alone: how a base makes its vectors does not matter."""
    _words(first, other)
    return list(_configs(first, other))


def tied(model: Model) -> dict[Key, Key]:
    """Copies of one matrix in a model's files: of each, the one it is a copy of. Only where its config ties the words'
    embeddings to the head, and only of its tallest matrices, which these are."""
    if not _ties(model.stock):
        return {}
    stock = {k: e for k, e in model.tensors.entries.items() if k.group == STOCK and len(e.shape) == 2}
    tallest = max((e.shape for e in stock.values()), default=())
    tall = [k for k, e in stock.items() if e.shape == tallest]
    return {copy: tall[0] for copy in tall[1:] if equal(model.tensors, copy, model.tensors, tall[0])}


def aligned(first: Model, other: Model, base: bool = False) -> Tensors:
    """`other` with the names of `first`. Raises DataError naming the first tensor that differs: missing, too much, or
    of another shape. base: it may lack parts that no stock class has, which training made, and have others."""
    ours, theirs = first.tensors.entries, other.tensors.entries
    if set(ours) != set(theirs):
        copies, others = tied(first), tied(other)
    else:
        copies, others = {}, {}
    lies = dict[Key, Key]()
    for key in ours:
        if key not in theirs and (there := _twin(key, copies, theirs)) is not None:
            lies[key] = there
    shown = {k: theirs[lies.get(k, k)] for k in ours if lies.get(k, k) in theirs}
    missing = [k for k in ours if k not in shown and not (base and k.group != STOCK)]
    extra = [] if base else [k for k in theirs if k not in ours and not _copy(k, others, ours)]
    if missing or extra:
        _unlike(first, other, missing, extra)
    for key, entry in shown.items():
        if entry.shape != ours[key].shape:
            raise DataError(
                f"{key} is {list(ours[key].shape)} in {first.label} and {list(entry.shape)} in {other.label}: models "
                "of other sizes or vocabularies cannot be merged"
            )
        if entry.floating != ours[key].floating:
            raise DataError(f"{key} is {ours[key].code} in {first.label} and {entry.code} in {other.label}")
    return Named(other.tensors, shown, lies)


def equal(one: Tensors, key: Key, other: Tensors, there: Key) -> bool:
    """Whether two tensors of one shape are equal to the bit, block by block."""
    count = one.entries[key].count
    spans = ((a, min(a + _COMPARED, count)) for a in range(0, count, _COMPARED))
    return all(torch.equal(one.read(key, a, b), other.read(there, a, b)) for a, b in spans)


def _twin(key: Key, copies: Mapping[Key, Key], theirs: Mapping[Key, Entry]) -> Key | None:
    group = {copies.get(key, key), *(c for c, of in copies.items() if of == copies.get(key, key))}
    return next((k for k in sorted(group) if k in theirs), None) if len(group) > 1 else None


def _copy(key: Key, copies: Mapping[Key, Key], ours: Mapping[Key, Entry]) -> bool:
    """Whether a tensor that the first model did not save is a tied copy of one that it has."""
    twins = [k for k in {*copies, *copies.values()} if k != key and copies.get(k, k) == copies.get(key, key)]
    return any(k in ours for k in twins)


def _unlike(first: Model, other: Model, missing: Sequence[Key], extra: Sequence[Key]) -> None:
    lacks = f"lacks {missing[0]} (of {len(missing)} tensors)" if missing else ""
    has = f"has {extra[0]} (of {len(extra)}), which {first.label} has not" if extra else ""
    raise DataError(
        f"{other.label} {' and '.join(filter(None, (lacks, has)))}: unlike models cannot be merged. If it is the same "
        "model under other names, load it with Embedder.load and save it"
    )


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _ties(stock: Path) -> bool:
    config = _json(stock / "config.json")
    return bool(config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings", False)))


def _words(first: Model, other: Model) -> None:
    """The same word must have the same number: a mean of rows of other words is nothing."""
    ours, theirs = (_vocabulary(m) for m in (first, other))
    if not ours or not theirs or ours == theirs:
        return
    word = next(w for w in (*ours, *theirs) if ours.get(w) != theirs.get(w))
    raise DataError(
        f"the token {word!r} is number {ours.get(word)} in {first.label} and {theirs.get(word)} in {other.label}: "
        "models of other vocabularies cannot be merged"
    )


def _vocabulary(model: Model) -> dict[str, int]:
    folder = next((f for f in (model.folder, model.stock) if (f / "tokenizer.json").is_file()), model.folder)
    found = _json(folder / "tokenizer.json")
    words = found.get("model", {}).get("vocab", {})
    given = dict(words) if isinstance(words, dict) else {w: i for i, (w, *_) in enumerate(words)}
    return given | {t["content"]: t["id"] for t in found.get("added_tokens", ())}


def _settings(first: Model, other: Model) -> Iterator[str]:
    ours, theirs = (_json(m.folder / RECORD) for m in (first, other))
    if not ours or not theirs:
        return
    if ours["template"] != theirs["template"]:
        raise DataError(f"{first.label} and {other.label} have different templates ({RECORD}); use one for both")
    for name, value in ours["settings"].items():
        its = theirs["settings"].get(name)
        if value == its:
            continue
        if name in _SETTINGS:
            raise DataError(
                f"{name} is {value!r} in {first.label} and {its!r} in {other.label} ({RECORD}): their vectors are made "
                "differently, so their weights cannot be merged"
            )
        yield f"{name} differs in {other.label}; that of {first.label} is kept: {value!r}"


def _configs(first: Model, other: Model) -> Iterator[str]:
    ours, theirs = (dict(_leaves(_json(m.stock / "config.json"))) for m in (first, other))
    if not ours or not theirs:
        return
    for name in sorted({*ours, *theirs}):
        if ours.get(name) == theirs.get(name):
            continue
        last = name.split(".")[-1]
        both = f"{ours.get(name)!r} in {first.label} and {theirs.get(name)!r} in {other.label}"
        if last in _CONFIG:
            raise DataError(f"config.json: {name} is {both}; unlike models cannot be merged")
        if last not in ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache", "architectures"):
            yield f"config.json: {name} is {both}; the first is kept"


def _leaves(plain: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, plain
