"""What a stage says in the terminal while it trains: a moving bar, or plain lines where the output goes to a file."""

from __future__ import annotations

import math
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_EVERY_S = 15.0  # between lines where there is no terminal


class Line(Protocol):
    """What the monitor speaks through. count: steps done; facts: what to say of the last one."""

    def show(self, count: int, facts: str) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def line(console: Console, stage: str, start: int, total: int, moving: bool | None) -> Line:
    """moving: a bar or plain lines; None: as the console is."""
    kind = Bar if (console.is_terminal if moving is None else moving) else Lines
    return kind(console, stage or "train", start, total)


class Bar:
    """A moving line in a terminal."""

    def __init__(self, console: Console, stage: str, start: int, total: int) -> None:
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}  {task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            refresh_per_second=4,
        )
        self.task: TaskID = self.progress.add_task(stage, total=total, completed=start, facts="")
        self.progress.start()

    def show(self, count: int, facts: str) -> None:
        self.progress.update(self.task, completed=count, facts=facts)

    def say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self.progress.stop()


class Lines:
    """A plain line now and then, where the output goes to a file."""

    def __init__(self, console: Console, stage: str, start: int, total: int) -> None:
        self.console, self.stage, self.start, self.total = console, stage, start, total
        self.began = time.monotonic()
        self.last = -math.inf

    def show(self, count: int, facts: str) -> None:
        now = time.monotonic()
        if now - self.last < _PLAIN_EVERY_S and count < self.total:
            return
        self.last = now
        left = (now - self.began) / max(1, count - self.start) * (self.total - count)
        self.say(f"{self.stage} {count:,}/{self.total:,}  {facts}  left {clock(left)}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to end."""


def clock(seconds: float) -> str:
    """1:02:03, of hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
