"""A rank that hangs, named: which one is behind, on which machine, in what step, section and function.

One slow rank stops all others in their next collective, where nothing says whom they wait for. A thread of each rank
keeps a small file in the run's folder; threads run on while the main one hangs in a collective or a kernel. A watchdog
names, and kills only where it is asked to.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from .guard import RESTART

FOLDER = "ranks"
_TIMES, _LEAST_S, _FIRST_S = 10.0, 300.0, 1800.0  # of the median step; at least; while no step's time is known
_SHOWN = 4  # frames of a stack in the alarm; the file has them all
_WAITS = ("torch/distributed/", "train/gather.py", "deepspeed/comm/")  # code that waits for other ranks


@dataclass(frozen=True)
class Stall:
    """What is known of a stall. ranks: those behind; text: for people."""

    ranks: tuple[int, ...]
    step: int
    where: str
    idle_s: float
    text: str


def _print(stall: Stall) -> None:
    print(stall.text, file=sys.stderr, flush=True)


class Watchdog:
    """Open while a stage trains, on every rank. `out`: a folder that all ranks see.

    limit_s: seconds without a `beat` that are a stall; 0: ten times the median step, at least five minutes (half an
    hour until three steps are known). tell: called, on one rank alone, from the watchdog's thread. kill: that rank
    then exits with the restart's status. every_s: seconds between signs of life.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        out: Path,
        *,
        limit_s: float = 0.0,
        every_s: float = 5.0,
        tell: Callable[[Stall], None] = _print,
        kill: bool = False,
    ) -> None:
        self.rank, self.size, self.folder = rank, size, out / FOLDER
        self.limit_s, self.every_s, self.tell, self.kill = limit_s, every_s, tell, kill
        self._step, self._where, self._beats, self._section_s = 0, "start", 0, 0.0
        self._at = self._step_at = time.monotonic()
        self._times: deque[float] = deque(maxlen=64)  # seconds of the last steps
        self._main = threading.get_ident()
        self._ticks = 0
        self._seen: dict[int, tuple[int, float]] = {}  # rank -> (its last tick, when we first saw that)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._stacks: TextIO | None = None

    def __enter__(self) -> Watchdog:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            self._remove_others()
        self._main = threading.get_ident()
        self._at = self._step_at = time.monotonic()
        self._stacks = self.stack_file(self.rank).open("w")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self._stacks is not None
        empty = self._stacks.tell() == 0
        self._stacks.close()
        if empty:
            self.stack_file(self.rank).unlink(missing_ok=True)
        self._file(self.rank).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another rank's file is there still, or a stack that someone will read
            self.folder.rmdir()

    def _remove_others(self) -> None:
        """What an earlier start, on more ranks, left when it was killed."""
        for path in self.folder.glob("rank-*"):
            if int(path.name[5:10]) >= self.size:
                path.unlink(missing_ok=True)

    def beat(self, step: int, where: str, allow_s: float = 0.0) -> None:
        """Progress: step and section that begin now. Every rank beats in the same places. allow_s: seconds that this
        section may take, where they are more than the limit (an evaluation, a save)."""
        now = time.monotonic()
        if step != self._step:
            if self._beats:
                self._times.append(now - self._step_at)
            self._step_at = now
        self._beats += 1
        self._step, self._where, self._section_s, self._at = step, where, allow_s, now

    def stack_file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.stack.txt"

    @property
    def limit(self) -> float:
        """Seconds that the present section may take."""
        usual = self.limit_s
        if not usual:
            known = len(self._times) >= 3
            usual = max(_LEAST_S, _TIMES * statistics.median(self._times)) if known else _FIRST_S
        return max(usual, self._section_s)

    # ---- the thread

    def _watch(self) -> None:
        spoken_s, dumped, since = 0.0, False, 0.0  # spoken_s: idle seconds at which to speak again; since: of looking
        while not self._stop.wait(self.every_s):
            now = time.monotonic()
            idle = now - self._at
            self._ticks += 1
            if idle <= self.limit:
                self._write(idle, [])
                spoken_s, dumped, since = 0.0, False, 0.0
                continue
            self._write(idle, _frames(self._main))
            if not dumped:
                self._dump()
                dumped = True
            if not self._speaks():
                continue
            states = self._read(range(self.size))
            since = since or now
            if now - since > self._silence_s + self.every_s and idle > spoken_s:
                silent = {r for r in range(self.size) if self._silent(r)}
                self.tell(_judged(states, silent, idle, self.folder))
                spoken_s = max(2 * idle, idle + 60.0)
                if self.kill:
                    os._exit(RESTART)

    def _speaks(self) -> bool:
        """Whether all lower ranks are silent. Most ranks read one file to know that they are not the one."""
        for rank in range(self.rank):
            self._read([rank])
            if not self._silent(rank):
                return False
        return True

    def _dump(self) -> None:
        assert self._stacks is not None
        self._stacks.write(f"rank {self.rank}, step {self._step}, {self._where}\n")
        self._stacks.flush()
        faulthandler.dump_traceback(self._stacks, all_threads=True)

    def _write(self, idle: float, stack: list[str]) -> None:
        """This rank's file. Ranks are compared by ticks and beats, never by their machines' clocks."""
        state = {
            "rank": self.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self._step,
            "where": self._where,
            "beats": self._beats,
            "idle_s": round(idle, 1),
            "ticks": self._ticks,
            "stack": stack,
        }
        aside = self._file(self.rank).with_suffix(".new")
        with contextlib.suppress(OSError):  # a full disk, a shared folder that is away: training is not ours to end
            aside.write_text(json.dumps(state))
            aside.replace(self._file(self.rank))

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"

    def _read(self, ranks: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The files of the ranks that have one; when each last changed is noted."""
        found = {}
        for rank in ranks:
            try:
                state = json.loads(self._file(rank).read_text())
            except (OSError, ValueError):
                state = None
            ticks = state["ticks"] if state else -1
            if rank not in self._seen or self._seen[rank][0] != ticks:
                self._seen[rank] = (ticks, time.monotonic())
            if state:
                found[rank] = state
        return found

    @property
    def _silence_s(self) -> float:
        return max(3 * self.every_s, 1.0)

    def _silent(self, rank: int) -> bool:
        """Whether a rank's thread has stopped: the process is gone, its machine, or it holds Python's lock."""
        return rank != self.rank and time.monotonic() - self._seen[rank][1] > self._silence_s


def _frames(thread: int) -> list[str]:
    """The "function (file:line)" of a thread's stack, innermost first."""
    frame = sys._current_frames().get(thread)
    stack = traceback.extract_stack(frame)[::-1] if frame else []
    return [f"{f.name} ({'/'.join(Path(f.filename).parts[-3:])}:{f.lineno})" for f in stack]


def _judged(states: Mapping[int, Mapping[str, Any]], silent: set[int], idle: float, folder: Path) -> Stall:
    """Who is behind: silent ranks, else those with the fewest beats, and of equal ones those that wait for nobody."""
    size = max([*states, *silent], default=0) + 1
    if silent:
        behind, how = sorted(silent), "gives no sign of life: killed, its machine gone, or stuck in native code"
    else:
        least = min(s["beats"] for s in states.values())
        behind = sorted(r for r, s in states.items() if s["beats"] == least)
        busy = [r for r in behind if not _waits(states[r]["stack"])]
        behind, how = busy or behind, "is behind"
        if len(behind) == size > 1:
            how = "all stand in the same place: look at the network between them"
    lines = [f"no progress for {idle:,.0f} s on {size} rank{'s' * (size > 1)}."]
    for rank in behind[:8]:
        state = states.get(rank)
        if state is None:
            lines.append(f"  rank {rank} {how}; it left no file in {folder}")
            continue
        lines.append(f"  rank {rank} (host {state['host']}, process {state['pid']}) {how}: step {state['step']}, ")
        lines[-1] += f"{state['where']}" + (f", in {' < '.join(state['stack'][:_SHOWN])}" if state["stack"] else "")
    if len(behind) > 8:
        lines.append(f"  and {len(behind) - 8} more ranks")
    lines.append(f"  whole stacks: {folder}/rank-*.stack.txt")
    first = states.get(behind[0], {}) if behind else {}
    return Stall(tuple(behind), int(first.get("step", -1)), str(first.get("where", "")), idle, "\n".join(lines))


def _waits(stack: list[str]) -> bool:
    return any(place in line for line in stack[:3] for place in _WAITS)
