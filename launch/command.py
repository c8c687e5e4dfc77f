"""What `omni2vec run` does with its words: the recipe is made, alone or with a launcher's other processes.

Signals and failed ranks end it with a word on how to go on, and a status that a launcher knows.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ..train.guard import RESTART, Restart
from .board import joined as board_of
from .graph import Recipe
from .joined import Joined, live
from .load import load
from .place import Place, outside
from .run import Make, Say, run
from .team import Here, RankError, Ranks

REQUEUE = "OMNI2VEC_REQUEUE"  # in the environment: the file to leave where the command ends with status 75


@dataclass(frozen=True)
class Run:
    """The command's words."""

    recipe: Path
    words: tuple[str, ...] = ()
    into: Path | None = None
    redo: tuple[str, ...] = ()
    only: str = ""
    ranks: int = 0
    restarts: int = 3

    def go(self, say: Say) -> None:
        """Makes the recipe. Raises SystemExit where that does not end well and all is said, DataError on bad input."""
        ranks = Ranks(say, self.recipe if self.recipe.suffix == ".py" else None, self.restarts)
        place = outside(os.environ)
        if place is not None:  # a lost process is told in our words; torch reads this when it is imported
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        with _stoppable(say):
            if place is None:
                self._lead(*self._loaded(), Here(self.ranks, ranks).make, say)
            elif status := self._share(place, ranks):
                raise _leave(status)

    def _loaded(self) -> tuple[Recipe, Path]:
        recipe = load(self.recipe, self.words)
        return recipe, self.into or Path("runs") / recipe.name

    def _share(self, place: Place, ranks: Ranks) -> int:
        """One process of several that a launcher started."""
        board = board_of(place, serve=place.rank == 0 and not place.served).under(place.name)
        joined = Joined(place, board, ranks)
        return live(joined, self._loaded, lambda recipe, at: self._lead(recipe, at, joined.make, ranks.say))

    def _lead(self, recipe: Recipe, at: Path, parallel: Make, say: Say) -> None:
        folder = run(recipe, at, self.redo, say, self.only, parallel)
        for page in sorted(p for s in recipe.steps for p in folder(s).glob("*.html")):
            say(f"report: {page}")


@contextmanager
def _stoppable(say: Say) -> Iterator[None]:
    signal.signal(signal.SIGTERM, _terminated)  # a cluster's notice is answered like Ctrl-C
    signal.signal(signal.SIGUSR1, _preempted)
    go_on = "What is done stays; the same command goes on from there."
    try:
        yield
    except KeyboardInterrupt as told:
        say(f"\nStopped: {told}. {go_on}" if str(told) else f"\nStopped. {go_on}")
        raise SystemExit(130) from None
    except Restart as restart:
        say(f"\nStopped: {restart.why}. {go_on}")
        raise _leave(RESTART) from None
    except RankError as error:
        raise SystemExit(error.status) from None


def _leave(status: int) -> SystemExit:
    """The end of this process. Before it, a sign for the launcher, that may see another process's end only: each leaves
    it, since the first to go may be the end of the others."""
    if status == RESTART and os.environ.get(REQUEUE):
        with suppress(OSError):  # the status says the same
            Path(os.environ[REQUEUE]).touch()
    return SystemExit(status)


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _preempted(signum: int, frame: FrameType | None) -> None:
    raise Restart("told to by SIGUSR1")
