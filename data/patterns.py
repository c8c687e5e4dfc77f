"""Dataset-driven pattern matching (SAIL-Embedding, arXiv:2510.12709): which fields of a row form the query, which the
target. One row can so serve several tasks: image -> text, text -> image + text, video -> audio, user -> item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .types import Example

Draw = Literal["one", "all"]


@dataclass(frozen=True)
class Pattern:
    """`form` names fields: "image -> title", "title + image? -> description". A field with "?" is used where the row
    has it. weight: its share among the patterns that a row can form. drop: the chance that a "?" field is left out.
    instruction, target_instruction: of the Items that it forms, None for the row's own. task: of the Examples, "" for
    the row's own."""

    form: str
    weight: float = 1.0
    drop: float = 0.0
    instruction: str | None = None
    target_instruction: str | None = None
    task: str = ""


def checked(patterns: Sequence[Pattern], source: str) -> None:
    """Raises ValueError for patterns that cannot stand together in the feed of `source`."""
    raise NotImplementedError


def possible(example: Example, patterns: Sequence[Pattern]) -> tuple[int, ...]:
    """The patterns that the row has the fields for."""
    raise NotImplementedError


def views(example: Example, patterns: Sequence[Pattern], how: Draw, seed: int, draw: int) -> tuple[int, ...]:
    """The patterns of this draw of the row: one of the possible ones by weight, or all of them; none: see `lacking`."""
    raise NotImplementedError


def formed(example: Example, patterns: Sequence[Pattern], index: int, seed: int, draw: int) -> Example:
    """The row seen in patterns[index]; its key ends in "#" and the form. The other patterns tell what is known as
    right. Raises DataError naming key and fields where the row cannot form it."""
    raise NotImplementedError


def lacking(example: Example, patterns: Sequence[Pattern]) -> str:
    """Why the row can form none of the patterns: key, its fields, the patterns."""
    raise NotImplementedError


def absent(fields: Mapping[str, int] | None, patterns: Sequence[Pattern], source: str) -> int | None:
    """How many rows can form none, from their counts by combination of fields; None where these are not known. Raises
    DataError for a pattern that no row can form."""
    raise NotImplementedError
