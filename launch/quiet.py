"""What libraries say to programmers is not for the user of a command. Before they are imported."""

from __future__ import annotations

import os
import sys
import warnings

SPEAKERS = ("transformers", r"torch\.distributed")


def quiet() -> None:
    """In every process of ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of loading weights, too: noise in a log
    for speaker in SPEAKERS:
        warnings.filterwarnings("ignore", category=FutureWarning, module=speaker)
