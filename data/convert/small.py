"""Seven small public sets by task, for recipes that show themselves on real data within minutes on one CPU.

A folder holds emoji, clothing, banking, sts, nlvr, cells and receipts (docs/your_data.md says what they are).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..sources import Shards
from ..types import DataError, Step
from .banking import Banking
from .cells import Cells
from .clothing import Clothing
from .emoji import Emoji
from .nlvr import Nlvr
from .receipts import Receipts
from .sts import Sts

_MADE: Mapping[str, Callable[[str], Step]] = {
    "emoji": Emoji,
    "clothing": Clothing,
    "banking": Banking,
    "sts": Sts,
    "nlvr": Nlvr,
    "cells": Cells,
    "receipts": Receipts,
}
TASKS = (
    *("emoji_picture", "emoji_name", "emoji_category", "emoji_composed", "clothing_classes", "clothing_same"),
    *("banking_intents", "banking_same", "sts_en", "sts_de", "nlvr", "cells_grounding", "cells_classes"),
    *("cells_count", "receipts_pages", "receipts_qa"),
)


@dataclass(frozen=True)
class Small:
    """The rows of one task."""

    train: Shards
    test: Shards


def small(data: str, tasks: Sequence[str] = TASKS) -> dict[str, Small]:
    """Task -> its rows, converted once for all tasks of a set. Raises DataError without a folder, or for a task that is
    none of TASKS."""
    if not data:
        raise DataError(f"no data given; data=FOLDER names what holds {', '.join(f'{name}/' for name in _MADE)}")
    if unknown := [t for t in tasks if t not in TASKS]:
        raise DataError(f"task {unknown[0]!r}: the small sets have {', '.join(TASKS)}")
    steps = {name: _MADE[name](f"{data}/{name}") for name in dict.fromkeys(map(_set, tasks))}
    return {t: Small(Shards(steps[_set(t)], f"train/{t}"), Shards(steps[_set(t)], f"test/{t}")) for t in tasks}


def _set(task: str) -> str:
    return task.split("_")[0]
