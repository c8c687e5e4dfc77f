"""`omni2vec eval`: any model on any shards, beside its base if wanted, without writing a recipe."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..data.types import DataError, Source, Step
from .embed import TABLES
from .show import tars


def score(model: str, shards: Sequence[str], baselines: Sequence[str], out: Path | None, limit: int | None) -> None:
    """Prints the scores; writes report.json, ranks.parquet and report.html where `out` names a folder.

    Raises DataError for a model or shards that cannot be read, and for an `out` that holds something.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"--out {out}: exists already; give a new folder.")
    from ..eval.evaluate import Evaluate

    step = Evaluate("eval", model, tuple(sources(shards)), tuple(baselines), limit)
    with tempfile.TemporaryDirectory(dir=_beside(out)) as scratch:
        made = Path(scratch) / "eval"
        made.mkdir()
        try:
            step.make(made, _no_steps)
        except (FileNotFoundError, ValueError) as error:
            raise DataError(str(error)) from error
        if out is not None:
            shutil.rmtree(out, ignore_errors=True)
            made.rename(out)


def _beside(out: Path | None) -> Path | None:
    """Where to write aside: on the disk of `out`, so that a rename is enough."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent if out is not None else None


def sources(paths: Sequence[str]) -> list[Source]:
    """One source for each folder that holds shards, named by it: a folder of folders is a set of tasks. JSON lines of
    whole rows are a source, too."""
    from ..data.sources import Shards, Table

    found: dict[str, Source] = {}
    for word in paths:
        path = Path(word)
        if path.is_file() and path.suffix.lower() in TABLES:
            found.setdefault(word, Table(word))
            continue
        for tar in tars([path]):
            at = str(tar if path.is_file() else tar.parent)
            found.setdefault(at, Shards(at))
    return list(found.values())


def _no_steps(step: Step) -> Path:
    raise DataError(f"step '{step.name}' has no folder here; name a folder or a hub model.")
