"""Ending to begin again: the restart's exit status, its exception, and what the next start should do otherwise.

Imports no torch: the launcher reads `RESTART` before anything is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESTART = 75  # EX_TEMPFAIL of sysexits.h: a failure that another try may mend
WISH = "restart.json"


class Restart(Exception):
    """The stage has saved what it must; started again, it goes on. The process then exits with `RESTART`."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def wish(out: Path, why: str, **facts: Any) -> Path:
    """Write what the next start in `out` should do otherwise, such as chunk_tokens. Aside, then renamed."""
    path = out / WISH
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps({"why": why, **facts}) + "\n")
    aside.replace(path)
    return path


def wished(out: Path) -> dict[str, Any] | None:
    """What the last start wished for, read once: the file goes."""
    path = out / WISH
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    path.unlink()
    return found
