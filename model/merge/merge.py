"""Models' folders in, a model's folder out: the driver of all rules.

A block of one tensor is in memory at a time, whatever the models' size (blocks.py). The folder is written aside and
renamed once it is whole.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...data.types import DataError
from ..encode import bar
from . import files
from .blocks import write
from .opened import prepare
from .types import Rule

log = logging.getLogger(__name__)

BLOCK_BYTES = 64 << 20  # of float32, of each model
SHARD_BYTES = 5 << 30


def merge(
    out: Path,
    models: Sequence[str | Path],
    rule: Rule,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    rank: int = 0,
    block_bytes: int = BLOCK_BYTES,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Merge folders or hub names into the folder `out`, which is replaced once the new one is whole. Gives its record,
    which `merge.json` holds too.

    base: θ0 of the rules that work on differences; by default the one that all adapters stand on. dtype: of the
    floating tensors; by default as the first model has them. rank: 0 writes dense weights; above 0, adapters stay an
    adapter of that rank (truncated SVD; the record says what share of the norm is lost). Raises DataError for models
    that are unlike, naming the first tensor that differs.
    """
    aside, old = _beside(out, "partial"), _beside(out, "old")
    if old.exists() and not out.exists():  # killed between the two renames
        old.rename(out)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        found = fill(
            aside,
            models,
            rule,
            base=base,
            dtype=dtype,
            rank=rank,
            block_bytes=block_bytes,
            shard_bytes=shard_bytes,
            label=f"merging {len(models)} models",
        )
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        aside.rename(out)
    except OSError as error:
        raise DataError(
            f"{out}: not merged ({error}); is the disk full, or is it a place that may not be read or written?"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return found


def _beside(out: Path, kind: str) -> Path:
    """Hidden, since someone may well keep a model in `merged.old`, and merge that."""
    return out.with_name(f".{out.name}.{kind}")


def fill(
    out: Path,
    models: Sequence[str | Path],
    rule: Rule,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    rank: int = 0,
    block_bytes: int = BLOCK_BYTES,
    shard_bytes: int = SHARD_BYTES,
    names: Sequence[str] = (),
    label: str = "",
) -> dict[str, Any]:
    """As `merge`, into a folder that exists. names: of the models, for the record and for errors; label: of a
    bar."""
    if rank:
        from .low_rank import fill_adapter

        return fill_adapter(out, models, rule, base, dtype, rank, names)
    plan = prepare(models, rule, base, names)
    files.copy(plan.models[0], out)
    files.set_dtype(out / "config.json", dtype)
    with bar(label, plan.elements) as advance:
        told = [*plan.told, *write(plan, rule, out, dtype, block_bytes, shard_bytes, advance)]
    for line in told:
        log.warning(line)
    return files.record(out, plan.models, rule, plan.origin, dtype, told)


def dtype_of(word: str | None) -> torch.dtype | None:
    """float32, bfloat16 or float16, by name; None stays."""
    if word is None:
        return None
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if word not in known:
        raise DataError(f"dtype={word!r}: expected one of {', '.join(known)}, or none for that of the first model")
    return known[word]
