"""Instructions by task and side, with paraphrases: which one a draw of a row gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .counter import bits
from .types import Example, Side

ANY = "*"


@dataclass(frozen=True)
class Instructions:
    """What each side is told, by dataset or task.

    query, target: texts, of which each draw of a row takes one, every one as often. A key is a dataset (Example.source
    as the row has it, or what stands behind its last "/"), a task (Example.task, which a pattern may set) or "*", any
    other; the first of these that is named wins. Where none is, a row keeps its own.

    drop: the chance that a side goes without, whatever it would have been told: so that the model can also be asked
    without. The two sides are drawn apart, since at search time they are embedded apart, by different people perhaps.
    A side without an instruction has the template's default, if there is one (model.template.Template.query, .target).
    """

    query: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    target: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise ValueError(f"instructions: drop={self.drop}; expected a chance from 0 to 1")
        for side, table in (("query", self.query), ("target", self.target)):
            for task, texts in table.items():
                if isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
                    raise ValueError(f'instructions: {side}[{task!r}]={texts!r}; expected texts, as in ("…", "…")')
                if not texts or not all(t.strip() for t in texts):
                    raise ValueError(
                        f"instructions: {side}[{task!r}]={texts!r}; expected one text at least, none of them blank: "
                        "leave the task out where rows keep their own, and set drop for draws without one"
                    )

    def texts(self, example: Example, side: Side) -> tuple[str, ...]:
        """The texts that the example's side is drawn from; none where it keeps its own."""
        table = self.query if side == "query" else self.target
        names = (example.source, example.source.rpartition("/")[2], example.task, ANY)
        return next((table[name] for name in names if name in table), ())

    def of(self, example: Example, side: Side, own: str, seed: int, draw: int) -> str:
        """The instruction of this draw of the example, `own` where nothing else is said. Pure in its arguments."""
        if self.drop and bits(seed, "instruction drop", side, draw, example.key) < self.drop * 2.0**64:
            return ""
        texts = self.texts(example, side)
        if not texts:
            return own
        return texts[bits(seed, "instruction", side, draw, example.key) % len(texts)]
