"""The `omni2vec` command: its verbs together, and how errors look.

Everything heavy is imported inside its verb, so that `omni2vec --help` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
from typing import NoReturn

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from ..data.addresses import redacted_text
from ..data.types import DataError
from . import run_verbs  # noqa: F401  (each adds its verbs, a newcomer's first)

# isort: split
from . import model_verbs  # noqa: F401

# isort: split
from . import mine_verb  # noqa: F401

# isort: split
from . import merge_verb  # noqa: F401
from .app import app
from .quiet import quiet


def main() -> NoReturn:
    """The console script. Bad input is one panel and exit 2; OMNI2VEC_TRACEBACK=1 shows where it was raised."""
    quiet()
    # deepspeed gives it to every program that it starts; LOCAL_RANK says the same.
    sys.argv[1:] = [word for word in sys.argv[1:] if not re.fullmatch(r"--local[-_]rank=\d+", word)]
    try:
        app()
    except (DataError, ImportError) as error:
        # An ImportError that names an extra is advice to the user; any other is a fault of ours.
        advice = isinstance(error, DataError) or "omni2vec[" in str(error)
        if os.environ.get("OMNI2VEC_TRACEBACK") == "1" or not advice:
            raise
        _complain(str(error))
        sys.exit(2)
    sys.exit(0)


def _complain(message: str) -> None:
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        console.print(Panel(Text(redacted_text(message)), title="omni2vec", title_align="left", border_style="red"))
    else:
        console.print(Text(f"error: {redacted_text(message)}"), soft_wrap=True)
