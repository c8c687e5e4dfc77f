"""`omni2vec pack`: a table with its media, or one of the known sets, to shards, with a bar."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..data.types import DataError, Step
from .words import closest


def table(
    path: Path, out: Path, columns: Sequence[str], media: Path | None, task: str, name: str, max_bytes: int
) -> list[Path]:
    """Packs JSON lines, CSV or Parquet. Raises DataError for columns that are not FIELD=SPEC, and as `pack` does."""
    from ..data.convert import pack

    spec: dict[str, str] = {}
    for word in columns:
        field, equals, value = word.partition("=")
        if not equals or not value:
            raise DataError(f"--column {word}: expected FIELD=KIND:COLUMN, such as query=image:photo.")
        spec[field] = value
    if not path.exists():
        raise DataError(f"{path}: no such table. Give a JSON-lines, CSV or Parquet file, or a folder of them.")
    parts = TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*parts, console=console, transient=True, disable=not console.is_terminal) as bar:
        rows = bar.add_task("packing", total=None)
        return pack(
            path,
            out,
            columns=spec,
            media=str(media or ""),
            task=task,
            source=name,
            max_bytes=max_bytes,
            progress=lambda done, total: bar.update(rows, completed=done, total=total),
        )


def known_set(name: str, root: Path, out: Path) -> list[Path]:
    """Packs the files of a set that this library has a converter for: out/SPLIT/TASK/*.tar."""
    from ..data.convert import SETS

    if name not in SETS:
        raise DataError(f"--set {name}: no such set.{closest(name, SETS)} There are {', '.join(SETS)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists already; give a new folder.")
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    make = cast(Callable[[str], Step], SETS[name])
    step = make(str(root))
    try:
        step.make(aside, _no_steps)
    except DataError as error:
        raise DataError(f"{error}{_in_a_recipe(step, str(root), str(error))}") from error
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    return sorted(out.rglob("*.tar"))


def _in_a_recipe(step: Step, root: str, said: str) -> str:
    """Where an error speaks of a setting that the command has no word for."""
    named = [f.name for f in fields(step) if re.search(rf"\b{f.name}=", said)]  # type: ignore[arg-type]
    if not named:
        return ""
    given = ", ".join(f"{n}=" for n in named)
    return f". The command has no {given}: in a recipe, write {type(step).__name__}({root!r}, {named[0]}=...)"


def _no_steps(step: Step) -> Path:
    raise DataError(f"step '{step.name}' has no folder outside a run.")
