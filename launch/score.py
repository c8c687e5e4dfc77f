"""`omni2vec eval`: any model on any shards, beside its base if wanted, without writing a recipe."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..data.types import DataError, Source, Step
from .show import tars


def score(model: str, shards: Sequence[str], baselines: Sequence[str], out: Path | None, limit: int | None) -> None:
    """Prints the scores; writes report.json, ranks.parquet and report.html where `out` names a folder.

    Raises DataError for a model or shards that cannot be read, and for an `out` that holds something.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"--out {out}: exists already; give a new folder.")
    from ..eval.evaluate import Evaluate

    step = Evaluate("eval", model, tuple(sources(shards)), tuple(baselines), limit)
    with tempfile.TemporaryDirectory() as scratch:
        aside = out.with_name(out.name + ".partial") if out is not None else Path(scratch)
        aside.mkdir(parents=True, exist_ok=True)
        try:
            step.make(aside, _no_steps)
        except (FileNotFoundError, ValueError) as error:
            raise DataError(str(error)) from error
        if out is not None:
            shutil.rmtree(out, ignore_errors=True)
            aside.rename(out)


def sources(shards: Sequence[str]) -> list[Source]:
    """One source for each folder that holds shards, named by it: a folder of folders is a set of tasks."""
    from ..data.sources import Shards

    found: dict[str, Source] = {}
    for path in shards:
        for tar in tars([Path(path)]):
            at = str(tar if Path(path).is_file() else tar.parent)
            found.setdefault(at, Shards(at))
    return list(found.values())


def _no_steps(step: Step) -> Path:
    raise DataError(f"step '{step.name}' has no folder here; name a folder or a hub model.")
