"""Instructions by task and side, with paraphrases: which one a draw of a row gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Instructions:
    """query, target: texts by task ("*": any other task), of which each draw of a row takes one. drop: the chance that
    a draw goes without. Where neither the task nor "*" is named, a row keeps its own."""

    query: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    target: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drop: float = 0.0
