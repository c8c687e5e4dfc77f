"""Example -> what the template renders: which answers are drawn, under which instructions, on which side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .counter import choose
from .mix import Feed
from .schedules import at
from .types import Clock, DataError, Example, Prompted


def drawn(example: Example, feed: Feed, clock: Clock, draw: int) -> Example:
    """The Example as this draw of its row has it: `feed.positives` and `feed.negatives` of its answers at most, in
    their order, with their scores; the feed's instructions; its answer only if the feed wants it. `known` names every
    right answer, drawn or not, so that an undrawn one never serves as a negative.

    A row's negatives stand hardest first. Of n, k are drawn from the first k + round((1 - hardness) (n - k)): from all
    of them at hardness 0, the k first ones at 1. Both numbers may follow clock.progress; k is rounded. Pure in
    (example, feed, clock.progress, clock.seed, draw).
    """
    seed = clock.seed
    answer = example.answer if feed.answers else ""
    if not example.positives and not answer:
        raise DataError(
            f"{example.key}: no positive and no answer to learn from; give the row a positive"
            + (", or let its feed train on answers" if example.answer else "")
        )
    right = choose(len(example.positives), feed.positives, seed, "positives", draw, example.key)
    count, given = round(at(feed.negatives, clock.progress)), len(example.negatives)
    hard = at(feed.hardness, clock.progress)
    pool = count + round((1 - hard) * (given - count)) if count < given else given
    wrong = choose(pool, count, seed, "negatives", draw, example.key)
    return replace(
        example,
        positives=tuple(example.positives[i] for i in right),
        negatives=tuple(example.negatives[i] for i in wrong),
        known=tuple(dict.fromkeys([*(p.id for p in example.positives), *example.known])),
        scores=_scores(example, [*right, *(len(example.positives) + i for i in wrong)]),
        instruction=example.instruction if feed.instruction is None else feed.instruction,
        target_instruction=example.target_instruction if feed.target_instruction is None else feed.target_instruction,
        answer=answer,
    )


def prompts(example: Example, group: int) -> tuple[Prompted, ...]:
    """The drawn example's query, its positives, its negatives. group: the index of its source in the stage."""
    query = Prompted(example.query, "query", example.instruction, answer=example.answer, key=example.key, group=group)
    targets = (
        Prompted(item, "target", example.target_instruction, key=example.key, group=group)
        for item in (*example.positives, *example.negatives)
    )
    return (query, *targets)


def _scores(example: Example, picked: list[int]) -> Mapping[str, tuple[float, ...]]:
    given = len(example.positives) + len(example.negatives)
    for name, values in example.scores.items():
        if len(values) not in (len(example.positives), given):
            raise DataError(
                f"{example.key}: {len(values)} scores {name!r} for {len(example.positives)} positives and "
                f"{len(example.negatives)} negatives; expected one per positive, then one per negative"
            )
    return {
        name: tuple(values[i] if i < len(values) else float("nan") for i in picked)
        for name, values in example.scores.items()
    }
