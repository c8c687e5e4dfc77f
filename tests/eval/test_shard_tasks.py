"""Rows to tasks: pools, right answers, names, limits, and the errors of rows that cannot be scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
from omni2vec.data.types import DataError, Example, Item
from omni2vec.eval.tasks.shards import tasks_from

WORDS = ("one", "two", "three", "four", "five", "six")


def item(word: str) -> Item:
    return Item.text(word)


def row(task: str, i: int, query: str = "", right: str = "", wrong: tuple[str, ...] = (), source: str = "s") -> Example:
    asked, answer = item(query or f"q{i}"), item(right or WORDS[i])
    return Example(f"{source}/0/{i}", source, task, asked, (answer,), tuple(map(item, wrong)))


def test_a_retrieval_pool_is_every_candidate_once(made) -> None:
    rows = made([row("retrieval", 0, wrong=("two", "six")), row("retrieval", 1), row("retrieval", 2, wrong=("one",))])
    (task,) = tasks_from(rows)
    assert set(task.candidates) == {item(w).id for w in ("one", "two", "three", "six")}
    assert [q.right for q in task.queries] == [(item(w).id,) for w in WORDS[:3]]
    assert task.pool == "global"


def test_known_answers_are_right_where_they_are_in_the_pool(made) -> None:
    first = replace(row("retrieval", 0), known=(item("two").id, item("absent").id))
    (task,) = tasks_from(made([first, row("retrieval", 1)]))
    assert task.queries[0].right == (item("one").id, item("two").id)


def test_labels_of_retrieval_become_gains_and_zero_is_not_right(made) -> None:
    graded = Example(
        "s/0/0", "s", "retrieval", item("q"), tuple(map(item, WORDS[:3])), scores={"label": (2.0, 0.0, 1.0)}
    )
    (task,) = tasks_from(made([graded]))
    assert task.queries[0].right == (item("one").id, item("three").id)
    assert task.queries[0].gains == (2.0, 1.0)


def test_classes_are_those_of_all_rows_even_under_a_limit(made) -> None:
    rows = made([row("classification", i) for i in range(6)])
    (task,) = tasks_from(rows, limit=2)
    assert len(task.queries) == 2
    assert len(task.candidates) == 6


def test_a_limit_keeps_the_same_rows_whatever_their_order(made) -> None:
    rows = [row("retrieval", i) for i in range(6)]
    (one,), (other,) = tasks_from(made(rows), limit=3), tasks_from(made(rows[::-1]), limit=3)
    assert {q.key for q in one.queries} == {q.key for q in other.queries}
    assert len(one.candidates) == 3


@pytest.mark.parametrize("kind", ["vqa", "grounding"])
def test_a_local_pool_holds_the_rows_own_candidates_in_an_order_that_gives_nothing_away(made, kind: str) -> None:
    rows = made([row(kind, 0, query=f"q{i}", right="one", wrong=("two", "three")) for i in range(300)])
    rows = made([replace(e, key=f"s/0/{i}") for i, e in enumerate(rows)])
    (task,) = tasks_from(rows)
    assert task.pool == "local"
    assert all(set(q.candidates) == {item(w).id for w in WORDS[:3]} for q in task.queries)
    places = [q.candidates.index(q.right[0]) for q in task.queries]
    assert all(70 <= places.count(p) <= 130 for p in range(3))  # 100 expected, 3.7 standard deviations


def test_sts_pairs_carry_their_label(made) -> None:
    pairs = [replace(row("sts", i), scores={"label": (float(i),)}) for i in range(3)]
    (task,) = tasks_from(made(pairs))
    assert [q.score for q in task.queries] == [0.0, 1.0, 2.0]
    assert task.main == "spearman"


def test_one_source_with_several_kinds_gives_a_task_each(made) -> None:
    rows = made([row("retrieval", 0), row("vqa", 1, wrong=("six",)), row("retrieval", 0, source="other")])
    assert [t.name for t in tasks_from(rows)] == ["s/retrieval", "s/vqa", "other"]


def test_target_instructions_split_a_source_into_two_pools(made) -> None:
    rows = made([row("retrieval", 0), replace(row("retrieval", 1), target_instruction="Read the page.")])
    assert [(t.name, t.target_instruction) for t in tasks_from(rows)] == [("s", ""), ("s#2", "Read the page.")]


def test_query_instructions_may_differ_within_a_task(made) -> None:
    rows = made([replace(row("retrieval", i), instruction=f"i{i // 2}") for i in range(3)])
    (task,) = tasks_from(rows)
    assert (task.instruction, [q.instruction for q in task.queries]) == ("i0", [None, None, "i1"])


def test_the_digest_follows_content_and_not_keys(made) -> None:
    rows = [row("retrieval", i) for i in range(3)]
    moved = [replace(e, key=f"elsewhere/{e.key}") for e in rows]
    changed = [rows[0], rows[1], replace(rows[2], positives=(item("six"),))]
    digests = [tasks_from(made(r))[0].digest for r in (rows, moved, changed)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("ranking", 0), "s/0/0: task 'ranking' cannot be scored; known kinds are retrieval, classification, vqa"),
        (replace(row("retrieval", 0), positives=()), "s/0/0: a retrieval row needs a positive, it has none"),
        (row("vqa", 0), "s/0/0: a vqa row ranks its own candidates and has 1; give it negatives"),
        (row("sts", 0), "s/0/0: a row of an sts task holds one positive .* got 1 positives and 0 labels"),
        (
            replace(row("retrieval", 0), scores={"label": (0.0,)}),
            r"s/0/0: scores\['label'\] grades every positive 0, so no answer is right",
        ),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(made, bad: Example, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tasks_from(made([bad]))


def test_no_rows_and_no_limit_are_refused(made) -> None:
    with pytest.raises(DataError, match="memory: no rows"):
        tasks_from(made([]))
    with pytest.raises(DataError, match="limit=0"):
        tasks_from(made([row("retrieval", 0), row("retrieval", 1)]), limit=0)


def test_rows_of_fields_say_how_they_are_scored(made) -> None:
    fields = {"title": item("one"), "image": item("two")}
    bad = replace(row("retrieval", 0), query=Item(()), positives=(), fields=fields)
    said = r'it has none; a row of fields \(image, title\): score it by Viewed\(source, Pattern\("image -> title"\)\)'
    with pytest.raises(DataError, match=said):
        tasks_from(made([bad]))
