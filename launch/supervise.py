"""The ranks of a step on this host: started, sent the signals that we get, and ended together when one ends badly."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from ..train.guard import RESTART

HEARD = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
POLL_S = 0.1
STARTER = "OMNI2VEC_STARTER"
HEADING = "---- started "  # of each try's words in a rank's log


@dataclass(frozen=True)
class Grace:
    """Seconds that the other ranks get when one has ended: after a signal, to save; otherwise, when they may hang in a
    collective; then after SIGTERM."""

    saving_s: float = 600.0
    failure_s: float = 20.0
    term_s: float = 15.0


@dataclass(frozen=True)
class Rank:
    """A process to start. log: where its words go; None: where ours go."""

    number: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    log: Path | None = None


@dataclass
class Signals:
    """Those that this process was sent while it supervises."""

    seen: list[int] = field(default_factory=list)
    when: list[float] = field(default_factory=list)

    def hear(self, number: int, frame: FrameType | None) -> None:
        self.seen.append(number)
        self.when.append(time.monotonic())

    @property
    def insists(self) -> bool:
        """The same signal again, a second or more behind the first: somebody does not want to wait."""
        return any(
            a == b and later - first >= 1
            for i, (a, first) in enumerate(zip(self.seen, self.when, strict=True))
            for b, later in zip(self.seen[i + 1 :], self.when[i + 1 :], strict=True)
        )


@contextmanager
def listening() -> Iterator[Signals]:
    """SIGTERM, SIGUSR1 and SIGINT are noted, not obeyed."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.hear) for number in HEARD}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def supervise(
    ranks: Sequence[Rank],
    signals: Signals,
    grace: Grace = Grace(),
    bad: Callable[[int], None] = lambda status: None,
    elsewhere: Callable[[], int | None] = lambda: None,
) -> dict[int, int]:
    """Starts `ranks` and waits for their ends. Returns the exit status of each that ended by itself (minus the signal's
    number, as subprocess has it): what we ended is a consequence.

    bad is told the first status that is not 0; elsewhere gives that of a rank on another host, once there is one.
    """
    running: dict[int, subprocess.Popen[bytes]] = {}
    ended: dict[int, int] = {}
    forced: set[int] = set()
    sent, first, deadline, asked = 0, None, 0.0, False
    try:
        for rank in ranks:
            running[rank.number] = _start(rank)
        while len(ended) < len(running):
            time.sleep(POLL_S)
            for number, process in running.items():
                if number not in ended and (status := process.poll()) is not None:
                    ended[number] = status
            alive = {n: p for n, p in running.items() if n not in ended}
            for number in signals.seen[sent:]:
                _send(alive, signal.SIGTERM if number == signal.SIGINT else number)
            sent = len(signals.seen)
            if signals.insists:
                forced |= alive.keys()
                _kill(alive)
            if first is None:
                own = next((s for s in ended.values() if s), None)
                first = own if own is not None else elsewhere()
                if own is not None:
                    bad(own)
                if first is not None:
                    deadline = time.monotonic() + (grace.saving_s if signals.seen else grace.failure_s)
            elif time.monotonic() > deadline:
                forced |= alive.keys()
                if asked:
                    _kill(alive)
                else:
                    _send(alive, signal.SIGTERM)
                asked, deadline = True, time.monotonic() + grace.term_s
    finally:
        _kill(running)  # with what they left behind: each leads a process group of its own
        for process in running.values():
            process.wait()
    return {n: s for n, s in ended.items() if n not in forced}


def _start(rank: Rank) -> subprocess.Popen[bytes]:
    out: Any = None
    if rank.log is not None:
        rank.log.parent.mkdir(parents=True, exist_ok=True)
        out = rank.log.open("ab")
        out.write(f"{HEADING}{time.strftime('%Y-%m-%d %H:%M:%S')} on host {platform.node()}\n".encode())
        out.flush()
    try:
        return subprocess.Popen(
            rank.command,
            env={**rank.env, STARTER: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C comes to us alone, and we say what it means
        )
    finally:
        if out is not None:
            out.close()


def follow_starter() -> None:
    """In a rank: SIGKILL when its starter is gone, so that a killed run leaves no rank on a GPU. Linux only."""
    starter = os.environ.get(STARTER)
    if starter is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != int(starter):  # it went before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def _send(processes: Mapping[int, subprocess.Popen[bytes]], number: int) -> None:
    for process in processes.values():
        process.send_signal(number)


def _kill(processes: Mapping[int, subprocess.Popen[bytes]]) -> None:
    for process in processes.values():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


# ---- what the ends mean


@dataclass(frozen=True)
class Verdict:
    """How a step's ranks ended together. status: of the command, where it ends here."""

    kind: Literal["done", "restart", "stopped", "failed"]
    why: str = ""
    status: int = 0
    rank: int = 0


def verdict(statuses: Mapping[int, int], heard: Sequence[int], claim: Mapping[str, Any] | None) -> Verdict:
    """statuses: by rank, of those that ended by themselves; heard: signals that we were sent; claim: what the first
    rank that failed said of it, if it could."""
    if claim is not None and claim["kind"] in ("input", "fault"):
        return Verdict("failed", claim["error"], claim["status"], claim["rank"])
    if statuses and not any(statuses.values()):
        return Verdict("done")
    if heard:
        names = ", ".join(dict.fromkeys(signal.Signals(n).name for n in heard))
        return Verdict("stopped", names, 130 if signal.SIGINT in heard else RESTART)
    if claim is not None and claim["kind"] == "restart":
        return Verdict("restart", claim["error"], RESTART, claim["rank"])
    # A rank that aborts because another was killed comes behind it: SIGKILL first.
    for number in sorted((n for n, s in statuses.items() if s < 0), key=lambda n: statuses[n] != -signal.SIGKILL):
        name = signal.Signals(-statuses[number]).name
        return Verdict("restart", f"rank {number} was ended by {name}", 1, number)
    if claim is not None:
        return Verdict("restart", claim["error"], 1, claim["rank"])
    for number, status in statuses.items():
        if status == RESTART:
            return Verdict("restart", f"rank {number} asked for it", RESTART, number)
    number = next((n for n, s in statuses.items() if s), 0)
    return Verdict("failed", f"rank {number} ended with status {statuses.get(number)}", 1, number)
