"""What libraries say to programmers is not for the user of a command. Before they are imported."""

from __future__ import annotations

import logging
import os
import sys
import warnings

SPEAKERS = ("transformers", r"torch\.distributed")


def quiet() -> None:
    """In every process of ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of loading weights, too: noise in a log
    # transformers imports DeepSpeed wherever it is installed, and it then says that it sees no accelerator.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.filename != "real_accelerator.py")
    for speaker in SPEAKERS:
        warnings.filterwarnings("ignore", category=FutureWarning, module=speaker)
