"""All ranks leave together: one says why, the others are silent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from ..data.types import DataError
from .gather import Group

T = TypeVar("T")


class Left(Exception):  # noqa: N818  the error is another rank's
    """Another rank has said why all of them leave; whoever catches this ends quietly, with a status that is not 0."""


def together(group: Group, work: Callable[[], T]) -> T:
    """`work()` on every rank, its value here. Collective; `work` must have no collective in it.

    Where it raises OSError or ValueError on any rank, all leave: rank 0 raises its own error, or a DataError with that
    of the first rank that has one; the others raise Left.
    """
    error: Exception | None = None
    try:
        value = work()
    except (OSError, ValueError) as met:
        error = met
    heard = everyone(group, None if error is None else str(error) or type(error).__name__)
    said = next((f"rank {rank}: {text}" for rank, text in enumerate(heard) if text is not None), "")
    if not said:
        return value
    if group.rank != 0:
        raise Left(said)
    raise DataError(said) if error is None else error


def everyone(group: Group, value: object) -> list[object]:
    """Every rank's value, in rank order, by way of JSON. Collective."""
    return [json.loads(m) for m in group.exchange(json.dumps(value).encode())]
