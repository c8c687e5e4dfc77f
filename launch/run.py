"""A recipe's steps, made in order into one folder: done ones skipped, changed ones refused, killed ones resumed.

A step is made in `NAME.partial` and renamed when it is whole, with done.json inside; so a folder `NAME` is always a
finished step. After a kill, `make` begins with an empty folder again, unless the step's class says `resumes = True`:
then it finds there what it had written. A step whose class says `parallel = True` may be made in several processes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.types import Step
from ..train.guard import WISH
from . import facts
from .digest import canonical, differences, step_digest
from .graph import Recipe, needs
from .lock import locked
from .record import write
from .words import RecipeError, closest

State = Literal["done", "unfinished", "new", "changed"]
Say = Callable[[str], None]
FINDINGS = ("failed.json", WISH)  # what a try leaves for the next one, no part of the output


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


Make = Callable[[Step, Path, Folder], None]


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
        if (before is None and not any(partial.iterdir())) or _failed_at_once(partial, before, digest):
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


def _failed_at_once(partial: Path, before: Mapping[str, Any] | None, digest: str) -> bool:
    """Whether a step of other fields has left nothing to lose: no more than why it failed, and a log without a step."""
    if before is None or before["digest"] == digest:
        return False
    left = [p for p in partial.rglob("*") if p.is_file() and p.name not in FINDINGS]
    return all(p == partial / "log.jsonl" and not _has_steps(p) for p in left)


def _has_steps(log: Path) -> bool:
    try:
        return any("event" not in json.loads(line) for line in log.read_text().splitlines())
    except ValueError:  # a line that was cut short: something was at work
        return True


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


def make_here(step: Step, partial: Path, folder: Folder) -> None:
    """In this process."""
    step.make(partial, folder)


def run(
    recipe: Recipe, at: Path, redo: Sequence[str] = (), say: Say = print, only: str = "", parallel: Make = make_here
) -> Folder:
    """Makes every step that is not done, or that one of `only`. Raises RecipeError, before it makes anything, where a
    made step differs. parallel: makes the steps that may have several ranks."""
    folder = Folder(at)
    at.mkdir(parents=True, exist_ok=True)
    # One step of several runs of the same recipe: as many jobs of a cluster may be at work in one folder.
    with nullcontext() if only else locked(at / "run.lock", say):
        _remove(_stale(recipe, redo, only), folder, say)
        standings = survey(recipe, folder)
        _refuse_changed(standings, at)
        chosen = _chosen(standings, only, at)
        record = write(recipe)
        if _read(at / "record.json") != record:
            put(at / "record.json", record)
        for place, standing in enumerate(standings, 1):
            if standing in chosen:
                title = f"[{place}/{len(standings)}] {standing.step.name}"
                _advance(standing, folder, title, say, parallel)
    return folder


def _chosen(standings: Sequence[Standing], only: str, at: Path) -> Sequence[Standing]:
    if not only:
        return standings
    by_name = {s.step.name: s for s in standings}
    if only not in by_name:
        raise RecipeError(f"--only {only}: no such step.{closest(only, by_name)} The steps are {', '.join(by_name)}.")
    missing = [n for n in by_name[only].needs if by_name[n].state != "done"]
    if missing and by_name[only].state != "done":
        raise RecipeError(f"--only {only}: it stands on {', '.join(missing)}, not done yet in {at}; make that first.")
    return [by_name[only]]


def _stale(recipe: Recipe, redo: Sequence[str], only: str) -> list[Step]:
    """The steps in `redo` and every step that stands on one of them."""
    names = [s.name for s in recipe.steps]
    for name in redo:
        if name not in names:
            raise RecipeError(f"--redo {name}: no such step.{closest(name, names)} The steps are {', '.join(names)}.")
        if only and name != only:
            raise RecipeError(
                f"--redo {name} with --only {only}: nothing would make {name} anew. Make it first: --only {name} "
                f"--redo {name}; or leave --only away."
            )
    stale: list[Step] = []
    for step in recipe.steps:
        if step.name in redo or any(s in stale for s in needs(step)):
            stale.append(step)
    return stale


def _remove(stale: Sequence[Step], folder: Folder, say: Say) -> None:
    """Removes steps. Raises RecipeError, and removes nothing, where another run is making one of them."""
    with ExitStack() as held:
        for step in stale:
            lock = folder.path / f"{step.name}.lock"
            try:
                held.enter_context(locked(lock, say))
            except RecipeError as error:
                raise RecipeError(f"{_made_by(step.name, lock)}; nothing is removed. {error}") from None
        for step in stale:
            for path in (folder(step), folder.partial(step)):
                if path.exists():
                    say(f"removing {path}")
                    shutil.rmtree(path)
            folder.started(step).unlink(missing_ok=True)
        for step in stale:
            (folder.path / f"{step.name}.lock").unlink(missing_ok=True)


def _made_by(name: str, lock: Path) -> str:
    try:
        holder = json.loads(lock.read_text())
        return f"{name} is being made by process {holder['pid']} on host {holder['host']}"
    except (OSError, ValueError, KeyError):
        return f"{name} is being made by another run"


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


def _advance(standing: Standing, folder: Folder, title: str, say: Say, parallel: Make) -> None:
    step = standing.step
    if standing.state == "done":
        say(f"{title}: done before, {folder(step)}")
        return
    with locked(folder.path / f"{step.name}.lock", say):
        if folder(step).exists():  # by another job, since we looked
            say(f"{title}: done meanwhile, {folder(step)}")
            return
        spent = _made(standing, folder, title, say, parallel)
    (folder.path / f"{step.name}.lock").unlink()
    say(f"{title}: done in {spoken(spent)}, {folder(step)}")


def _made(standing: Standing, folder: Folder, title: str, say: Say, parallel: Make) -> float:
    """Makes a step in its partial folder and renames that. Returns the seconds spent, over all tries."""
    step = standing.step
    partial = folder.partial(step)
    say(f"{title}: {'goes on, was stopped in ' + str(partial) if standing.state == 'unfinished' else 'starts'}")
    recorded = _read(folder.started(step))
    before = (recorded or {}) if standing.state == "unfinished" else {}
    anew = partial.exists() and _failed_at_once(partial, recorded, standing.digest)
    spent = float(before.get("seconds", 0.0))
    started = {"digest": standing.digest, "step": standing.canonical, "tries": before.get("tries", 0) + 1}
    put(folder.started(step), started | {"seconds": spent})
    if partial.exists() and (anew or not getattr(type(step), "resumes", False)):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    begin = time.perf_counter()
    try:
        make = parallel if getattr(type(step), "parallel", False) else make_here
        make(step, partial, folder)
    finally:
        spent = round(spent + time.perf_counter() - begin, 2)
        put(folder.started(step), started | {"seconds": spent})
    for name in FINDINGS:
        (partial / name).unlink(missing_ok=True)
    put(partial / "done.json", started | {"seconds": spent, "made_with": facts.environment()})
    partial.rename(folder(step))
    folder.started(step).unlink()
    return spent


def spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def put(path: Path, value: Mapping[str, Any]) -> None:
    """JSON, written aside and renamed. Processes of several hosts may write at once, with one number."""
    aside = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.new")
    aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    aside.replace(path)
