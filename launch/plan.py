"""What a run would do, as tables: order, digest, standing and the steps' own estimates. Makes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..data.addresses import redacted_text
from .graph import Recipe
from .run import Folder, Standing, survey
from .words import spell

SAYS = {
    "done": "skipped: done with this digest",
    "unfinished": "goes on where it was stopped",
    "new": "made",
    "changed": "stops: made from other fields",
}
COLOUR = {"done": "green", "unfinished": "yellow", "new": "", "changed": "red"}


class Tables(Group):
    """What is shown. failing: the steps that would fail, as far as can be known now."""

    def __init__(self, parts: Sequence[RenderableType], failing: Sequence[str]) -> None:
        super().__init__(*parts)
        self.failing = tuple(failing)


def plan(recipe: Recipe, at: Path, ranks: int = 1) -> Tables:
    """The settings, the steps in order, and what each says of its cost (on each of `ranks` ranks, where it is made by
    several) or of the fields that have changed."""
    folder = Folder(at)
    standings = survey(recipe, folder)
    parts: list[RenderableType] = [Text(f"recipe {recipe.name} into {at}")]
    if recipe.settings:
        parts += [Text(), _settings(recipe)]
    parts += [Text(), _steps(standings)]
    failing: list[str] = []
    for standing in standings:
        lines = list(_below(standing, folder, ranks, failing))
        if lines:
            parts += [Text(f"\n{standing.step.name}", style="bold"), *lines]
    return Tables(parts, failing)


def _settings(recipe: Recipe) -> Table:
    table = Table("setting", "value", "type", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for s in recipe.settings:
        value = redacted_text(str(s.value)) if s.value != "" else '""'
        table.add_row(s.name, Text(value, style="bold" if s.given else ""), Text(spell(s.annotation), style="dim"))
    return table


def _steps(standings: tuple[Standing, ...]) -> Table:
    table = Table("", "step", "kind", "needs", "digest", "", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, s in enumerate(standings, 1):
        says = Text(SAYS[s.state], style=COLOUR[s.state])
        table.add_row(str(i), s.step.name, type(s.step).__name__, ", ".join(s.needs) or "-", s.digest[:8], says)
    return table


def _below(standing: Standing, folder: Folder, ranks: int, failing: list[str]) -> Iterator[RenderableType]:
    """failing: gets the step's name where it would fail."""
    for line in standing.changes:
        yield Text(f"  {redacted_text(line)}", style="red")
    estimate = getattr(standing.step, "plan", None)
    if standing.state == "done" or not callable(estimate):
        return
    waits = [name for name in standing.needs if not (folder.path / name).exists()]
    try:
        parallel = getattr(type(standing.step), "parallel", False)
        facts: Mapping[str, str] = estimate(folder, ranks) if parallel else estimate(folder)
    except (ValueError, OSError) as error:
        if waits:
            yield Text(f"  known once {', '.join(waits)} is done", style="dim")
        else:
            failing.append(standing.step.name)
            yield Text(f"  error: {redacted_text(str(error))}", style="red")
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(f"  {name}", str(value))
    yield table
