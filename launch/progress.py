"""`omni2vec show RUN`: the page of a run's folder, once or for as long as the run goes on."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live

from ..data.types import DataError
from .logs import Log, chosen, logs_of
from .page import line, page

_REFRESH_S = 2.0
_PATIENCE = 10  # refreshes in which a folder may be away, while it is renamed


def show(folder: Path, console: Console, *, stage: str = "", follow: bool = False) -> None:
    """Print the page of a run's or a stage's folder; with `follow`, again and again until the stage is done."""
    log = Log(chosen(logs_of(folder), stage))
    if isinstance(console.file, io.TextIOWrapper):
        console.file.reconfigure(errors="replace")  # a log may hold letters that the terminal has not
    if not follow:
        console.print(page(log.read(), console, _others(folder, log)))
        return
    try:
        _follow(folder, console, stage)
    except KeyboardInterrupt:
        return  # enough seen; the run goes on


def _follow(folder: Path, console: Console, stage: str) -> None:
    if console.is_terminal:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            for log in _followed(folder, stage):
                live.update(page(log, console, _others(folder, log), fit=True), refresh=True)
        console.print(page(log, console, _others(folder, log)))
    else:
        for log in _followed(folder, stage):
            console.print(line(log), soft_wrap=True)


def _followed(folder: Path, stage: str) -> Iterator[Log]:
    """The log each time that it has something new. A stage's folder is renamed when it is whole, and another begins."""
    log, last, missed = Log(chosen(logs_of(folder), stage)), (-1, -1, ""), 0
    while True:
        try:
            path = chosen(logs_of(folder), stage)
            log = (log if path == log.path else Log(path)).read()
        except (DataError, OSError):
            missed += 1
            if missed > _PATIENCE:
                raise
            if folder.name.endswith(".partial") and not folder.exists():
                folder = folder.with_name(folder.name.removesuffix(".partial"))
            time.sleep(_REFRESH_S)
            continue
        missed, now = 0, (log.done, len(log.events), log.state)
        if now != last:
            yield log
        last = now
        if log.state != "running":
            return
        time.sleep(_REFRESH_S)


def _others(folder: Path, log: Log) -> list[str]:
    """The other stages of the run."""
    names = [p.parent.name.removesuffix(".partial") for p in logs_of(folder)]
    return [n for n in names if n != log.name]
