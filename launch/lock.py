"""One run at a time in a folder: a lock file that its owner's death releases.

The lock is the system's (POSIX, which forked data workers do not inherit); the file's text says who holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .words import RecipeError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder`/run.lock. Raises RecipeError where another process has it; takes over the lock of a dead one."""
    path = folder / "run.lock"
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecipeError(
                f"{folder}: another run is at work here ({_who(path)}). Wait for it, or take another folder: --into."
            ) from None
        file.seek(0)
        _refuse_other_host(file.read(), path)
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
        file.flush()
        yield
        file.truncate(0)  # emptied, not removed: a process that waits may have it open


def _who(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "it has only just begun"


def _refuse_other_host(text: str, path: Path) -> None:
    """A file system may not carry locks between hosts: a lock that looks free but names another host is believed."""
    try:
        host = json.loads(text)["host"]
    except (ValueError, KeyError):
        return
    if host != platform.node():
        raise RecipeError(
            f"{path}: a run on host {host} holds this folder. If it is dead, remove that file and run again."
        )
