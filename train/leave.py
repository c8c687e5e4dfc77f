"""All ranks leave together: one says why, the others are silent."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
    said = first(group, "" if error is None else str(error) or type(error).__name__)
    if said is None:
        return value
    if group.rank != 0:
        raise Left(said)
    if error is not None:
        raise error
    raise DataError(said)


def first(group: Group, message: str) -> str | None:
    """The first message of any rank that is not empty, with the rank in front where there are several; None if all
    are. Collective."""
    return _first([m.decode() for m in group.exchange(message.encode())])


def _first(messages: Sequence[str]) -> str | None:
    for rank, message in enumerate(messages):
        if message:
            return f"rank {rank}: {message}" if len(messages) > 1 else message
    return None


def everyone(group: Group, value: object) -> list[object]:
    """Every rank's value, in rank order, by way of JSON. Collective."""
    return [json.loads(m) for m in group.exchange(json.dumps(value).encode())]
