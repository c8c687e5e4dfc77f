"""Example -> what the template renders: which answers are drawn, under which instructions, behind which examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from .counter import bits, choose
from .mix import Feed
from .schedules import at
from .types import Clock, DataError, Example, Item, Prompted, Side


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
            + (f", or give its feed patterns of {', '.join(example.fields)}" if example.fields else "")
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
        instruction=_told(example, "query", feed, seed, draw),
        target_instruction=_told(example, "target", feed, seed, draw),
        answer=answer,
    )


def _told(example: Example, side: Side, feed: Feed, seed: int, draw: int) -> str:
    """The feed's fixed text, or one of its instructions by task (a Feed has not both), before the row's own."""
    own, fixed = (
        (example.instruction, feed.instruction)
        if side == "query"
        else (example.target_instruction, feed.target_instruction)
    )
    own = own if fixed is None else fixed
    return feed.instructions.of(example, side, own, seed, draw) if feed.instructions else own


def prompts(example: Example, group: int, shots: Sequence[Example] = ()) -> tuple[Prompted, ...]:
    """The drawn example's query, its positives, its negatives. group: the index of its source in the stage. shots:
    drawn examples that stand in front of the query, each its query and its right answer (arXiv:2506.07438)."""
    query = Prompted(
        example.query,
        "query",
        example.instruction,
        shots=tuple((shot.query, _shown(shot)) for shot in shots),
        answer=example.answer,
        key=example.key,
        group=group,
    )
    targets = (
        Prompted(item, "target", example.target_instruction, key=example.key, group=group)
        for item in (*example.positives, *example.negatives)
    )
    return (query, *targets)


_TRIED = 16  # rows a demonstration: of rows half of which do not fit, one search in 65,000 finds none


def demonstrations(size: int, row: int, count: int, seed: int, source: int, draw: int) -> Iterator[int]:
    """Rows of a source of `size` rows to demonstrate row `row` with: in random order, each once, never itself.

    As many are named as may be needed to find `count` that `fits`: 16 a demonstration, or all of a smaller source, so
    that a source of nothing but twins costs a bounded number of reads. O(rows taken) time and memory. Pure in its
    arguments.
    """
    others = size - 1
    key = bits(seed, "shots", source, row, draw)
    moved: dict[int, int] = {}  # Fisher-Yates over 0, 1, ..., of which only the moved places are kept
    for i in range(min(others, _TRIED * count)):
        j = i + bits(key, i) % (others - i)
        picked = moved.get(j, j)
        moved[j] = moved.get(i, i)
        yield picked + (picked >= row)


def fits(example: Example, shot: Example) -> bool:
    """Whether `shot` may stand in front of the example's query: it is another row, of another query, and gives nothing
    of the example's own answer away.

    So no right answer of the example is shown, embedded or generated, and none of its Items on the other side either.
    But where many rows share an answer (a class, "yes"), whether it is shown must not depend on the example: were a
    row's own class never among its demonstrations, then of two classes it would always be the other one. There, answers
    are not compared.
    """
    if _row(example) == _row(shot) or example.query.id == shot.query.id:
        return False
    right, shown = _right(example), _right(shot) | {_shown(shot).id}
    if example.answer:  # to be generated: a demonstration without positives shows its own
        right.add(Item.text(example.answer).id)
    if example.query.id in shown or shot.query.id in right:
        return False
    shared = bool(example.label) or example.task in _CLOSED
    return shared or right.isdisjoint(shown)


_CLOSED = ("classification", "vqa")  # tasks whose rows share their answers


def _row(example: Example) -> str:
    """The key without the pattern: one row may serve several."""
    return example.key.partition("#")[0]


def _right(example: Example) -> set[str]:
    return {*(p.id for p in example.positives), *example.known}


def _shown(shot: Example) -> Item:
    """What a demonstration answers: its first positive, or its text to generate where it has none."""
    return shot.positives[0] if shot.positives else Item.text(shot.answer)


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
