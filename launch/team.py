"""How a run makes a parallel step: in ranks on this machine, started again where that helps.

launch/joined.py does the same where a launcher from outside has started this process, and others beside it.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.types import DataError, Step
from ..train.guard import WISH, Restart
from .board import opened
from .place import Place, environment
from .run import Folder, Say
from .supervise import HEADING, Grace, Rank, Signals, Verdict, listening, supervise, verdict
from .words import RecipeError

TAIL = 30  # lines of a failed rank's log that are shown
Once = Callable[[Signals], Verdict]


class RankError(Exception):
    """A step's ranks failed, and one of them has told why. status: the command's."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Ranks:
    """What every rank of a run is started with. recipe: the Python file that defines the recipe's own steps; restarts:
    at most so many without progress."""

    say: Say = print
    recipe: Path | None = None
    restarts: int = 3
    grace: Grace = field(default_factory=Grace)

    def rank(self, step: str, at: Path, place: Place, board: str) -> Rank:
        """One rank's process. Rank 0 speaks on the terminal, the others in files."""
        command = [sys.executable, "-m", f"{__package__}.worker", str(at), step]
        command += ["--recipe", str(self.recipe)] if self.recipe else []
        log = log_of(at, step, place.rank) if place.rank else None
        return Rank(place.rank, tuple(command), environment(place, board), log)


@dataclass
class Here:
    """Ranks on this machine, `wanted` of them or one a GPU (0); one alone is this very process."""

    wanted: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    tries: int = 0

    @cached_property
    def size(self) -> int:
        """Raises RecipeError where more ranks are wanted than there are GPUs: NCCL takes no two on one."""
        if self.wanted == 1:
            return 1
        import torch

        gpus = torch.cuda.device_count()
        if gpus and self.wanted > gpus:
            raise RecipeError(f"--ranks {self.wanted}: this machine has {gpus} GPU{'s' * (gpus > 1)}, one a rank.")
        return self.wanted or max(1, gpus)

    def make(self, step: Step, partial: Path, folder: Folder) -> None:
        """Makes a parallel step. Raises RankError, RecipeError on bad input, or Restart where we were told to stop."""
        used = 0
        if self.size == 1:
            try:
                with _one_line():
                    return step.make(partial, folder)
            except Restart as error:
                if not (partial / WISH).exists():
                    raise  # told to stop; a rank that wants to go on otherwise leaves a wish
                self.ranks.say(f"{step.name}: {error.why}; starts again in a process of its own")
                used = 1
        attempts(lambda signals: self._once(step.name, partial, folder.path, signals), step, partial, self.ranks, used)

    def _once(self, step: str, partial: Path, at: Path, signals: Signals) -> Verdict:
        self.tries += 1
        board, port, name = (*opened(), f"{step}/{self.tries}") if self.size > 1 else (None, 0, "")
        places = [Place(r, self.size, r, self.size, "127.0.0.1", port) for r in range(self.size)]
        statuses = supervise([self.ranks.rank(step, at, p, name) for p in places], signals, self.ranks.grace)
        claim = board.under(name).look("claim") if board else _read(partial / "failed.json")
        end = verdict(statuses, signals.seen, claim)
        if end.kind in ("failed", "restart"):  # not where we were told to stop
            show_tail(at, step, end.rank, self.ranks.say)
        return end


@contextmanager
def _one_line() -> Iterator[None]:
    """What is bad input to a rank in a process of its own is bad input here: a RecipeError with the error's words."""
    try:
        yield
    except (ValueError, OSError) as error:
        from .worker import kind_of

        if isinstance(error, DataError) or kind_of(error)[0] != "input":
            raise
        raise RecipeError(str(error) or type(error).__name__) from error


def attempts(once: Once, step: Step, partial: Path, ranks: Ranks, used: int = 0) -> None:
    """`once` until the step is made: again after a restart, while checkpoints come or restarts are left.

    Raises RankError, Restart (told to stop) or KeyboardInterrupt (told to stop by Ctrl-C), which name the checkpoint.
    """
    left, before = ranks.restarts - used, newest(partial)
    while True:
        (partial / "failed.json").unlink(missing_ok=True)
        release_memory()
        with listening() as signals:
            end = once(signals)
        if end.kind == "done" and not signals.seen:
            return
        if end.kind == "failed":
            raise RankError(end.status, end.why)
        now = newest(partial)
        if end.kind != "restart":
            told = f"told to stop by {end.why}" if end.why else "told to stop"
            told += f"; saved in {partial / 'checkpoints' / now}" if now else "; no checkpoint was saved yet"
            raise KeyboardInterrupt(told) if end.status == 130 else Restart(told)
        left, before = (ranks.restarts if now > before else left) - 1, now
        if left < 0:
            ranks.say(
                f"{step.name}: {end.why}, {ranks.restarts + 1} times without a new checkpoint: given up. What is saved "
                f"stays in {partial}. If nothing here explains it, look whether the host's memory was full (dmesg)."
            )
            raise RankError(1, end.why)
        ranks.say(f"{step.name}: {end.why}; all ranks start again from {now or 'the beginning'}")


def newest(partial: Path) -> str:
    """The name of a stage's newest whole checkpoint; "" while there is none."""
    return max((p.name for p in (partial / "checkpoints").glob("step-*") if p.suffix == ""), default="")


def release_memory() -> None:
    """What this process holds of a GPU's memory, from a step before, goes to the ranks."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def log_of(at: Path, step: str, rank: int) -> Path:
    return at / "logs" / step / f"rank-{rank}.log"


def show_tail(at: Path, step: str, rank: int, say: Say) -> None:
    """The end of a rank's words of its last try; rank 0's were on the terminal."""
    log = log_of(at, step, rank)
    if rank == 0 or not log.is_file():
        return
    lines = log.read_text(errors="replace").splitlines()
    begin = max((i for i, line in enumerate(lines) if line.startswith(HEADING)), default=0)
    say(f"{step}: rank {rank} ended before it was done; the end of {log}:")
    for line in lines[begin:][-TAIL:]:
        say(f"  {line}")


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text())
        return found
    except (OSError, ValueError):
        return None
