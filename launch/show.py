"""What the model will see of a batch, and what shards hold: for a person's eyes, before hours are spent on it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..data.told import told, told_fields
from ..data.types import DataError, Example
from .graph import Recipe, needs
from .run import Folder
from .words import RecipeError, closest

LABEL = 12  # width of the labels in a stage's preview
SHOWN = 4  # positives and negatives of a row that are listed


def batch(recipe: Recipe, at: Path, step: int, stage: str = "") -> Iterator[RenderableType]:
    """Batch `step` of a stage as the model will see it. What the stage needs must be done in the folder `at`."""
    stages: dict[str, Any] = {s.name: s for s in recipe.steps if callable(getattr(s, "preview", None))}
    if not stages:
        raise RecipeError(f"recipe {recipe.name} has no stage that trains, and so no batch to show.")
    if stage and stage not in stages:
        raise RecipeError(
            f"--stage {stage}: no such stage.{closest(stage, stages)} The stages are {', '.join(stages)}."
        )
    if not stage and len(stages) > 1:
        raise RecipeError(f"recipe {recipe.name} has several stages: give --stage {' or '.join(stages)}.")
    chosen = stages[stage or next(iter(stages))]
    folder = Folder(at)
    missing = [s.name for s in needs(chosen) if not folder(s).exists()]
    if missing:
        raise RecipeError(
            f"{at}: stage '{chosen.name}' reads {', '.join(missing)}, not made yet. Run the recipe first: omni2vec run."
        )
    try:
        yield from chosen.preview(step, folder)
    except DataError:
        raise
    except (ValueError, FileNotFoundError) as error:  # a setting that is refused once the sources are open
        raise RecipeError(f"stage '{chosen.name}': {error}") from error


def hanging(line: str, width: int) -> Text:
    """A line of a preview, as it is; what does not fit goes on below the text, to the right of its label."""
    under = " " * LABEL if line.startswith("  ") else ""
    pieces = textwrap.wrap(line, width, subsequent_indent=under, replace_whitespace=False, break_on_hyphens=False)
    return Text("\n".join(pieces))


def tars(paths: Sequence[Path]) -> list[Path]:
    """The shards among `paths`: files as they are, folders searched for *.tar. Raises DataError where there is none."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder.")
        inside = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path}: no *.tar in it. Shards are made by `omni2vec pack`.")
        found += inside
    return found


def rows(paths: Sequence[Path], limit: int, console: Console) -> int:
    """Lists the first rows of each shard. Returns the exit status."""
    from ..data.shards import Shard

    for path in paths:
        shard = Shard(path)
        console.print(Text(f"{path}: {len(shard):,} rows", style="bold"), soft_wrap=True)
        for index in range(min(limit, len(shard))):
            console.print(row(shard.example(index)))
    return 0


def verify(paths: Sequence[Path], console: Console) -> int:
    """Reads and decodes every sample. Prints each fault with its shard and key; returns the exit status."""
    from ..data.verify import verify as faults_of

    faults = 0
    for fault in faults_of(paths):
        faults += 1
        console.print(Text(str(fault), style="red"), soft_wrap=True)
    shards = f"{len(paths)} shard{'s' if len(paths) > 1 else ''}"
    console.print(f"{shards}: {faults} fault{'s' if faults > 1 else ''}" if faults else f"{shards}: sound")
    return 1 if faults else 0


def row(example: Example) -> RenderableType:
    """One Example in a few lines: what is asked, what is right, what is wrong."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_row("key", Text(f"{example.key} ({example.task})"))
    if example.instruction:
        table.add_row("instruction", Text(example.instruction))
    if example.query.parts:
        table.add_row("query", Text(told(example.query)))
    for name, items in (("right", example.positives), ("wrong", example.negatives)):
        for item in items[:SHOWN]:
            table.add_row(name, Text(told(item)))
        if len(items) > SHOWN:
            table.add_row("", f"and {len(items) - SHOWN} more")
    for name, line in told_fields(example.fields).items():
        table.add_row(name, Text(line))
    if example.answer:
        table.add_row("answer", Text(example.answer))
    for name, scores in example.scores.items():
        table.add_row(f"score {name}", ", ".join(f"{s:g}" for s in scores))
    return Group(table, "")
