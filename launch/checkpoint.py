"""An embedder's folder out of any checkpoint of a stage, whole or not: to look at a run before its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .graph import Recipe, needs
from .load import module_of
from .record import read
from .run import Folder
from .words import RecipeError, closest

if TYPE_CHECKING:
    from ..train.stage import Stage


def export(at: Path, name: str, step: int | None, out: Path, source: Path | None = None) -> tuple[Path, str]:
    """Writes checkpoint `step` (None: the newest) of stage `name` ("": the only one that has any) of the run in `at`.

    source: the Python file of a recipe that defines steps of its own. Returns the embedder's folder and the
    checkpoint's name.
    """
    from ..train import consolidate
    from ..train.resume import existing

    recipe, folder = _recipe(at, source), Folder(at)
    stage = _stage(recipe, folder, name)
    found = {int(p.name.removeprefix("step-")): p for p in existing(_home(folder, stage))}
    if not found:
        done = f"; it is finished: {folder(stage)} is the embedder" if folder(stage).exists() else ""
        raise RecipeError(f"{at}: stage '{stage.name}' has no checkpoints{done}.")
    chosen = max(found) if step is None else step
    if chosen not in found:
        raise RecipeError(
            f"{at}: stage '{stage.name}' has no checkpoint {chosen}. It has {', '.join(map(str, found))} "
            f"({_home(folder, stage) / 'checkpoints'})."
        )
    if missing := [n.name for n in needs(stage) if not folder(n).exists()]:
        raise RecipeError(f"{at}: stage '{stage.name}' stands on {missing[0]}, whose folder is gone; run the recipe.")
    if out.exists():
        raise RecipeError(f"{out}: exists already; give the name of a folder that does not.")
    return consolidate.export(stage, found[chosen], out, folder, stage.base(folder)), found[chosen].name


def _recipe(at: Path, source: Path | None) -> Recipe:
    record = at / "record.json"
    if not record.is_file():
        raise RecipeError(f"{at}: no run's folder, for it has no record.json. Give the folder of a run: runs/NAME.")
    if source is not None:
        module_of(source)
    return read(json.loads(record.read_text()), str(record))


def _stage(recipe: Recipe, folder: Folder, name: str) -> Stage:
    from ..train.resume import existing
    from ..train.stage import Stage

    stages = {s.name: s for s in recipe.steps if isinstance(s, Stage)}
    if name and name not in stages:
        raise RecipeError(f"no stage '{name}'.{closest(name, stages)} The stages are {', '.join(stages) or '(none)'}.")
    if name:
        return stages[name]
    begun = [s for s in stages.values() if existing(_home(folder, s))]
    if len(begun) != 1:
        raise RecipeError(
            f"{folder.path}: {'no' if not begun else 'more than one'} stage has checkpoints; name one of "
            f"{', '.join(s.name for s in begun) or ', '.join(stages)}."
        )
    return begun[0]


def _home(folder: Folder, stage: Stage) -> Path:
    partial = folder.partial(stage)
    return partial if partial.exists() else folder(stage)
