"""Ending to begin again: the restart's exit status, its exception, its signals, what the next start does otherwise.

Imports no torch: the launcher reads `RESTART` before anything is trained.
"""

from __future__ import annotations

import json
import signal
import threading
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

RESTART = 75  # EX_TEMPFAIL of sysexits.h: a failure that another try may mend
WISH = "restart.json"


class Restart(Exception):  # noqa: N818  it is no error: nothing is lost
    """The stage has saved what it must; started again, it goes on. The process then exits with `RESTART`."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def wish(out: Path, why: str, **facts: Any) -> Path:
    """Write what the next start in `out` should do otherwise, such as chunk_tokens. Any rank may, at any time."""
    path = out / WISH
    aside = path.with_name(f"{WISH}.{uuid.uuid4().hex[:8]}")  # of its own: several ranks may run out of memory at once
    aside.write_text(json.dumps({"why": why, **facts}) + "\n")
    aside.replace(path)
    return path


def wished(out: Path, take: bool = True) -> dict[str, Any] | None:
    """What the last start wished for, or None. take: the file goes, so that it is honoured once."""
    path = out / WISH
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if take:
        path.unlink(missing_ok=True)
    return found


def smaller(chunk_tokens: int, longest: int, stage: str = "") -> int:
    """Half of a chunk budget that was too large, never under the longest item. Raises ValueError where it is that."""
    if chunk_tokens <= longest:
        raise ValueError(
            f"{f'stage {stage!r}: ' if stage else ''}out of memory with chunk_tokens={chunk_tokens:,}, which the "
            f"longest item ({longest:,} tokens) needs; lower Limits(max_tokens, max_pixels), choose memory='vectors', "
            "train fewer parameters (lora, freeze) or shard them over more ranks"
        )
    return max(chunk_tokens // 2, longest)


class Signals:
    """While open, SIGTERM and SIGUSR1 (a cluster's notice) only set `asked` to their name; the loop looks there between
    steps. Ctrl-C stays what it is. Python gives handlers to the main thread alone: elsewhere nothing is changed."""

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set from Python
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
