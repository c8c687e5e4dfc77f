"""One run at a time in a folder: a lock file that its owner's death releases.

The lock is the system's (POSIX, which forked data workers do not inherit); the file's text says who holds it. Where a
file system carries no locks between hosts, the file's age tells a dead owner: a living one touches it.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .words import RecipeError

BEAT_S = 30.0
DEAD_S = 300.0  # ten missed beats: network file systems show a new time late


@contextmanager
def locked(path: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Holds the lock file `path`. Raises RecipeError where another process has it; takes over a dead one's, and tells
    `say` where its host was another."""
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecipeError(
                f"{path}: another run is at work here ({_who(path)}). Wait for it, or take another folder: --into."
            ) from None
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise RecipeError(f"{path}: another run has just ended here. Run again.")  # we hold what it removed
        file.seek(0)
        _from_other_host(file.read(), path, say)
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
        file.flush()
        ended = threading.Event()
        threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            file.truncate(0)  # emptied, not removed: a process that waits may have it open


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        try:
            os.utime(path)
        except OSError:
            return  # removed by a person


def _who(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "it has only just begun"


def _from_other_host(text: str, path: Path, say: Callable[[str], None]) -> None:
    """A lock that looks free but names another host is believed while it is young: locks may not cross hosts."""
    try:
        host = json.loads(text)["host"]
    except (ValueError, KeyError):
        return
    age = time.time() - path.stat().st_mtime
    if host == platform.node():
        return
    if age < DEAD_S:
        raise RecipeError(
            f"{path}: a run on host {host} holds this folder; it gave a sign of life {age:.0f} s ago. If it is dead, "
            f"wait until that was {DEAD_S:.0f} s ago and run again, or remove that file."
        )
    say(f"{path}: the run on host {host} has given no sign of life for {age / 60:.0f} minutes; taken over")
