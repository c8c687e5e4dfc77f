"""A run in the processes of torchrun, deepspeed or srun: the first leads, the others wait for its word.

The leader takes the lock and makes the steps that want no group; for a parallel step each process starts one rank
beside itself and supervises it, so that the step's memory and process group end with that process.
"""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.types import DataError, Step
from ..train.guard import RESTART, Restart
from .board import POLL_S, Board, agree, versions
from .digest import leaves
from .graph import Recipe
from .place import Place
from .record import write
from .run import Folder
from .supervise import Signals, Verdict, listening, supervise, verdict
from .team import RankError, Ranks, attempts, show_tail

FAREWELL_S = 30.0


@dataclass
class Joined:
    """One of the processes that a launcher started."""

    place: Place
    board: Board
    ranks: Ranks
    orders: int = 0  # given, or obeyed

    def met(self, loaded: tuple[Recipe, Path] | DataError) -> tuple[Recipe, Path]:
        """The recipe and the run's folder, once every process is here with the same ones, of the same versions; else
        DataError on all of them."""
        if isinstance(loaded, DataError):
            facts = {"error": str(loaded)}
        else:
            recipe, at = loaded
            facts = versions() | dict(leaves({**write(recipe)["steps"], "folder": str(at)}, "recipe"))
        try:
            agree(self.board, self.place, facts, self.ranks.say)
        except DataError:
            if not isinstance(loaded, DataError):
                raise
        if isinstance(loaded, DataError):
            raise loaded
        return loaded

    # ---- the leader

    @contextmanager
    def leading(self) -> Iterator[None]:
        """However the leader ends, the others are told."""
        status = 1
        try:
            yield
            status = 0
        except BaseException as error:
            status = status_of(error)
            raise
        finally:
            with suppress(RuntimeError):  # the board may be gone, if another process served it
                self._order({"do": "end", "status": status})
                end = time.monotonic() + FAREWELL_S  # if this process serves the board, it must not go first
                while (self.board.look("heard") or 0) < self.place.size - 1 and time.monotonic() < end:
                    time.sleep(POLL_S)

    def make(self, step: Step, partial: Path, folder: Folder) -> None:
        """Makes a parallel step with all processes."""
        attempts(lambda signals: self._once(step.name, folder.path, signals), step, partial, self.ranks)

    def _once(self, step: str, at: Path, signals: Signals) -> Verdict:
        self._order({"do": "make", "step": step})
        name = f"{step}/{self.orders}"
        statuses, heard = self._supervised(step, at, name, signals), list(signals.seen)
        for rank in range(1, self.place.size):
            end = self._message(f"end/{self.orders}/{rank}", signals)
            if end is not None:
                statuses |= {rank: end["status"]} if end["status"] is not None else {}
                heard += end["heard"]
        return verdict(statuses, heard, self.board.under(name).look("claim"))

    def _order(self, order: dict[str, object]) -> None:
        self.orders += 1
        self.board.put(f"order/{self.orders}", order)

    # ---- the others

    def follow(self, at: Path, signals: Signals) -> int:
        """Obeys until the leader ends. Returns the leader's exit status; says nothing of its own."""
        while True:
            order = self._next(signals)
            if order is None:
                return RESTART  # told to stop, and the leader is gone
            if order["do"] == "end":
                self.board.add("heard")
                return int(order["status"])
            step, name = order["step"], f"{order['step']}/{self.orders}"
            status = self._supervised(step, at, name, signals).get(self.place.rank)
            self.board.put(f"end/{self.orders}/{self.place.rank}", {"status": status, "heard": signals.seen})
            claim = self.board.under(name).look("claim")
            mine = claim is None or claim["rank"] == self.place.rank
            # A rank that was killed made no claim: another's lost its connection. One that aborts comes behind it.
            killed = status is not None and status < 0 and status != -signal.SIGABRT
            stopped = signals.seen and (claim is None or claim["kind"] == "restart")
            if status and (mine or killed) and not stopped:
                show_tail(at, step, self.place.rank, self.ranks.say)

    def _next(self, signals: Signals) -> dict[str, str] | None:
        self.orders += 1
        order: dict[str, str] | None = self._message(f"order/{self.orders}", signals)
        return order

    # ---- all of them

    def _message(self, key: str, signals: Signals) -> Any:
        """Another process's message; None where we have been told to stop, and it does not come."""
        while True:
            message = self.board.wait(key, 1.0)
            late = signals.when and time.monotonic() - signals.when[0] > FAREWELL_S
            if message is not None or late or signals.insists:
                return message

    def _supervised(self, step: str, at: Path, name: str, signals: Signals) -> dict[int, int]:
        board = self.board.under(name)
        rank = self.ranks.rank(step, at, self.place, f"{self.place.name}/{name}")

        def bad(status: int) -> None:
            board.put("bad", status)

        return supervise([rank], signals, self.ranks.grace, bad, lambda: board.look("bad"))


def status_of(error: BaseException) -> int:
    """The command's exit status after an error."""
    match error:
        case Restart():
            return RESTART
        case RankError():
            return error.status
        case DataError():
            return 2
        case KeyboardInterrupt():
            return 130
    return 1


def live(joined: Joined, load: Callable[[], tuple[Recipe, Path]], lead: Callable[[Recipe, Path], None]) -> int:
    """The whole life of one process: the first one leads, and raises what went wrong; the others give their status."""
    try:
        loaded: tuple[Recipe, Path] | DataError = load()
    except DataError as error:
        loaded = error
    if joined.place.rank == 0:
        with joined.leading():
            recipe, at = joined.met(loaded)
            lead(recipe, at)
        return 0
    try:
        with listening() as signals:
            _, at = joined.met(loaded)
            return joined.follow(at, signals)
    except DataError:  # which the leader tells
        joined.board.add("heard")
        return 2
    except RuntimeError:  # the board is gone with its server
        joined.ranks.say(f"rank {joined.place.rank} on host {platform.node()}: the first process has gone; leaving")
        return 1
