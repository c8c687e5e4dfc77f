"""Which pairs of words train and test may use: a quarter of all pairs is kept for the test, in every task.

"Red" and "heart" both occur in training, "red heart" does not: a model that is right at test has put them together
itself. The pattern is Latin: each word of an axis misses an equal share of the other axis. It does not depend on
the world's seed, so that a model trained on one seed may be tested on another.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

from ..types import DataError
from .dice import Dice
from .vocabulary import COLOURS, COUNTS, GOODS, INSTRUMENTS, PAPERS, SHAPES, TOPICS

Split = Literal["train", "test"]
Axis = Literal["things", "goods", "titles", "sounds"]
Pair = tuple[str, str]

# Both sides of an axis have the same number of words, a multiple of four.
AXES: dict[Axis, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "things": (tuple(COLOURS), SHAPES),  # on pictures, in clips, and in every text that names a shape
    "goods": (tuple(COLOURS), GOODS),  # in people's histories
    "titles": (TOPICS, PAPERS),  # of pages
    "sounds": (COUNTS, INSTRUMENTS),
}


@cache
def pairs(axis: Axis, split: Split) -> tuple[Pair, ...]:
    """All pairs of the axis that belong to the split; train and test share none and together have all."""
    if split not in get_args(Split):
        raise DataError(f"the world has no split {split!r}; take one of {', '.join(get_args(Split))}")
    rows, columns = AXES[axis]
    dice = Dice("held out", axis)
    rows_in_order, columns_in_order = dice.shuffled(rows), dice.shuffled(columns)
    size = len(rows)
    apart = {k * (k + 1) // 2 for k in range(size // 4)}  # 0, 1, 3, 6: no two words miss the same partners
    held = {(a, columns_in_order[(i + k) % size]) for i, a in enumerate(rows_in_order) for k in apart}
    return tuple((a, b) for a in rows for b in columns if ((a, b) in held) == (split == "test"))


def partners(axis: Axis, split: Split, word: str) -> tuple[str, ...]:
    """The words that stand with `word` in a pair of the split."""
    return tuple(b if a == word else a for a, b in pairs(axis, split) if word in (a, b))
