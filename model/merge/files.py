"""The files beside the weights: those of the first model, and the record of what was merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ..checkpoint import ADAPTER, digest_of_folder
from .alike import Model
from .types import Rule
from .weights import INDEX

MERGED = "merge.json"  # what was merged, how, and what was told
_COPIED = (".json", ".jinja", ".txt", ".model")
# Not of the model: what a run leaves beside it, and what is written anew.
_LEFT = (
    INDEX,
    ADAPTER,
    MERGED,
    "done.json",
    "failed.json",
    "restart.json",
    "report.json",
    "soup.json",
    "position.json",
)


def copy(model: Model, out: Path) -> None:
    """Configuration, tokenizer, processor, template and settings of the first model."""
    for folder in dict.fromkeys((model.stock, model.folder)):
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix in _COPIED and file.name not in _LEFT:
                shutil.copyfile(file, out / file.name)
        for inner in sorted(folder.glob("[0-9]_*/*.json")):
            (out / inner.parent.name).mkdir(exist_ok=True)
            shutil.copyfile(inner, out / inner.parent.name / inner.name)


def set_dtype(file: Path, dtype: torch.dtype | None) -> None:
    if dtype is None or not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    word = str(dtype).removeprefix("torch.")
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        for name in ("dtype", "torch_dtype"):
            if name in part:
                part[name] = word
    config.setdefault("dtype", word)
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def record(
    out: Path,
    models: Sequence[Model],
    rule: Rule,
    base: str | Path | None,
    dtype: torch.dtype | None,
    told: Sequence[str],
    found: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write merge.json, and give what it holds. found: what else the merge found out."""
    content = {
        "omni2vec": __version__,
        "rule": {"name": type(rule).__name__, **_fields(rule)},
        "models": [{"name": m.label, "digest": digest_of_folder(str(m.folder))} for m in models],
        "base": None if base is None else {"name": Path(base).name, "digest": digest_of_folder(str(base))},
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "told": list(told),
        **(found or {}),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (out / MERGED).write_text(text, encoding="utf-8")
    written: dict[str, Any] = json.loads(text)
    return written


def _fields(rule: Rule) -> dict[str, Any]:
    found: dict[str, Any] = asdict(rule)  # type: ignore[call-overload]
    return found | ({"tensors": [Path(f).name for f in rule.beside]} if rule.beside else {})
