"""Dataset-driven pattern matching (SAIL-Embedding, arXiv:2510.12709): which fields of a row form the query, which the
target. One row can so serve several tasks: image -> text, text -> image + text, video -> audio, user -> item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
