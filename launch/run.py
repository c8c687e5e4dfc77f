"""A recipe's steps, made in order into one folder: done ones skipped, changed ones refused, killed ones resumed.

A step is made in `NAME.partial` and renamed when it is whole, with done.json inside; so a folder `NAME` is always a
finished step. After a kill, `make` begins with an empty folder again, unless the step's class says `resumes = True`:
then it finds there what it had written.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.types import Step
from . import facts
from .digest import canonical, differences, step_digest
from .graph import Recipe, needs
from .lock import locked
from .record import write
from .words import RecipeError, closest

State = Literal["done", "unfinished", "new", "changed"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Folder:
    """A run's folder; called with a step, the folder of its finished output."""

    path: Path

    def __call__(self, step: Step) -> Path:
        return self.path / step.name

    def partial(self, step: Step) -> Path:
        return self.path / f"{step.name}.partial"

    def started(self, step: Step) -> Path:
        return self.path / f"{step.name}.started.json"


@dataclass(frozen=True)
class Standing:
    """Where one step of a recipe stands in a run's folder."""

    step: Step
    canonical: Mapping[str, Any]  # what the digest is of
    digest: str
    state: State
    changes: tuple[str, ...] = ()  # where state is "changed": one line a field

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(s.name for s in needs(self.step))


def survey(recipe: Recipe, folder: Folder) -> tuple[Standing, ...]:
    """The standing of every step, in order. Reads the digests of outside inputs; makes nothing."""
    digests: dict[str, str] = {}
    standings = []
    for step in recipe.steps:
        form = canonical(step, folder, digests)
        digests[step.name] = step_digest(form)
        state, changes = _state(step, folder, form, digests[step.name])
        standings.append(Standing(step, form, digests[step.name], state, changes))
    return tuple(standings)


def _state(step: Step, folder: Folder, form: Mapping[str, Any], digest: str) -> tuple[State, tuple[str, ...]]:
    made, partial = folder(step), folder.partial(step)
    if made.exists():
        before, state = _read(made / "done.json"), "done"
    elif partial.exists():
        before, state = _read(folder.started(step)), "unfinished"
        if before is None and not any(partial.iterdir()):
            return "new", ()
    else:
        return "new", ()
    if before is None:
        return "changed", (
            f"{(made if made.exists() else partial).name}/ was not made by a run: it has no record of its digest",
        )
    if before["digest"] == digest:
        return state, ()  # type: ignore[return-value]
    return "changed", tuple(_changes(step.name, before["step"], form))


def _changes(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    lines = differences(old["fields"], new["fields"], name)
    moved = dict.fromkeys(n for n, _ in sorted(set(old["needs"].items()) ^ set(new["needs"].items())))
    lines += [f"{name} stands on {other}, which is another now" for other in moved]
    lines += [f"{name} reads {line}" for line in differences(old["outside"], new["outside"], "data")]
    return lines or [f"{name}: its digest"]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except FileNotFoundError:
        return None
    except ValueError:
        raise RecipeError(f"{path}: not JSON; was it edited? Remove the step's folder, and run again.") from None


# ---- the run


def run(recipe: Recipe, at: Path, redo: Sequence[str] = (), say: Say = print) -> Folder:
    """Makes every step that is not done. Raises RecipeError, before it makes anything, where a made step differs."""
    folder = Folder(at)
    at.mkdir(parents=True, exist_ok=True)
    with locked(at):
        _remove(recipe, folder, redo, say)
        standings = survey(recipe, folder)
        _refuse_changed(standings, at)
        _put(at / "record.json", write(recipe))
        for place, standing in enumerate(standings, 1):
            _advance(standing, folder, f"[{place}/{len(standings)}] {standing.step.name}", say)
    return folder


def _remove(recipe: Recipe, folder: Folder, redo: Sequence[str], say: Say) -> None:
    """Removes the steps in `redo` and every step that stands on one of them."""
    names = [s.name for s in recipe.steps]
    for name in redo:
        if name not in names:
            raise RecipeError(f"--redo {name}: no such step.{closest(name, names)} The steps are {', '.join(names)}.")
    stale: set[str] = set()
    for step in recipe.steps:
        if step.name in redo or any(s.name in stale for s in needs(step)):
            stale.add(step.name)
            for path in (folder(step), folder.partial(step)):
                if path.exists():
                    say(f"removing {path}")
                    shutil.rmtree(path)
            folder.started(step).unlink(missing_ok=True)


def _refuse_changed(standings: Sequence[Standing], at: Path) -> None:
    changed = [s for s in standings if s.state == "changed"]
    if not changed:
        return
    # Whatever stands on a changed step is changed by it: only those with a difference of their own are worth a line.
    names = {s.step.name for s in changed}
    roots = [s for s in changed if not names & set(s.needs)] or changed[:1]
    lines = "\n".join(f"  {line}" for s in roots for line in s.changes)
    after = [s.step.name for s in changed if s not in roots]
    raise RecipeError(
        f"{at}: {', '.join(s.step.name for s in roots)} was made from other fields than the recipe's now:\n{lines}\n"
        + (f"With it would change: {', '.join(after)}.\n" if after else "")
        + f"To make it anew, with what stands on it: {' '.join(f'--redo {s.step.name}' for s in roots)}. "
        "To keep both, take another folder: --into."
    )


def _advance(standing: Standing, folder: Folder, title: str, say: Say) -> None:
    step = standing.step
    if standing.state == "done":
        say(f"{title}: done before, {folder(step)}")
        return
    partial = folder.partial(step)
    say(f"{title}: {'goes on, was stopped in ' + str(partial) if standing.state == 'unfinished' else 'starts'}")
    before = (_read(folder.started(step)) or {}) if standing.state == "unfinished" else {}
    spent = float(before.get("seconds", 0.0))
    started = {"digest": standing.digest, "step": standing.canonical, "tries": before.get("tries", 0) + 1}
    _put(folder.started(step), started | {"seconds": spent})
    if not getattr(type(step), "resumes", False) and partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    begin = time.perf_counter()
    try:
        step.make(partial, folder)
    finally:
        spent = round(spent + time.perf_counter() - begin, 2)
        _put(folder.started(step), started | {"seconds": spent})
    _put(partial / "done.json", started | {"seconds": spent, "made_with": facts.environment()})
    partial.rename(folder(step))
    folder.started(step).unlink()
    say(f"{title}: done in {spoken(spent)}, {folder(step)}")


def spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _put(path: Path, value: Mapping[str, Any]) -> None:
    """JSON, written aside and renamed."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    aside.replace(path)
