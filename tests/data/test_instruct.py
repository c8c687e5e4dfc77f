"""Which answers a draw takes, and what is rendered of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from omni2vec.data.instruct import drawn, prompts
from omni2vec.data.mix import Feed
from omni2vec.data.relation import Relation
from omni2vec.data.sources import Shards
from omni2vec.data.types import Clock, DataError, Example, Item

ROW = Example(
    key="toys/0/1",
    source="toys",
    task="retrieval",
    query=Item.text("query"),
    positives=tuple(Item.text(f"right {k}") for k in range(5)),
    negatives=tuple(Item.text(f"wrong {k}") for k in range(3)),
    known=("elsewhere",),
    instruction="find it",
    target_instruction="describe it",
    answer="yes",
    scores={"label": (5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25, 0.0)},
)


def _at(seed: int, progress: float = 0.0) -> Clock:
    return Clock(0, progress, seed)


def _feed(**settings: object) -> Feed:
    return Feed(Shards("shards", name="toys"), **settings)  # type: ignore[arg-type]


def test_a_draw_is_a_function_of_seed_draw_and_key() -> None:
    feed = _feed(positives=2, negatives=1)
    assert drawn(ROW, feed, _at(1), 7) == drawn(ROW, feed, _at(1), 7)
    of_draws = {drawn(ROW, feed, _at(1), d).positives for d in range(40)}
    of_seeds = {drawn(ROW, feed, _at(s), 0).positives for s in range(40)}
    of_keys = {drawn(replace(ROW, key=str(k)), feed, _at(1), 0).positives for k in range(40)}
    assert len(of_draws) == len(of_seeds) == len(of_keys) == 10  # all pairs out of five


def test_every_answer_is_drawn_about_as_often() -> None:
    counts = Counter(p for d in range(2000) for p in drawn(ROW, _feed(positives=2), _at(1), d).positives)
    assert min(counts.values()) > 700  # 800 each, standard deviation 22
    assert len(counts) == 5


def test_drawn_answers_keep_their_order_and_their_scores() -> None:
    example = drawn(ROW, _feed(positives=2, negatives=2), _at(1), 3)
    items = [*ROW.positives, *ROW.negatives]
    picked = [items.index(i) for i in (*example.positives, *example.negatives)]
    assert picked == sorted(picked)
    assert len(picked) == 4
    assert example.scores == {"label": tuple(ROW.scores["label"][i] for i in picked)}


def test_right_answers_that_were_not_drawn_stay_known() -> None:
    example = drawn(ROW, _feed(positives=1), _at(1), 0)
    assert example.known == (*(p.id for p in ROW.positives), "elsewhere")
    undrawn = next(p for p in ROW.positives if p not in example.positives)
    other = replace(ROW, key="toys/0/2", query=Item.text("other"), positives=(undrawn,), negatives=(), scores={})
    relation = Relation.of([example, drawn(other, _feed(), _at(1), 0)], ["toys"])
    known = {tuple(i) for i in relation.known_id[relation.known_query == 0].tolist()}
    assert relation.owner.tolist() == [0, 1]
    assert all(tuple(i) in known for i in relation.doc_id.tolist())  # both documents are right answers of query 0


def test_a_row_with_fewer_answers_than_asked_for_gives_all_it_has() -> None:
    example = drawn(ROW, _feed(positives=9, negatives=9), _at(1), 0)
    assert (example.positives, example.negatives, example.scores) == (ROW.positives, ROW.negatives, ROW.scores)


def test_prompts_are_the_query_then_its_answers_each_on_its_side() -> None:
    query, right, wrong = prompts(drawn(ROW, _feed(positives=1, negatives=1), _at(1), 0), group=4)
    assert (query.side, query.instruction, query.answer) == ("query", "find it", "yes")
    for target in (right, wrong):
        assert (target.side, target.instruction, target.answer) == ("target", "describe it", "")
    assert right.item in ROW.positives
    assert wrong.item in ROW.negatives
    assert {(p.key, p.group) for p in (query, right, wrong)} == {("toys/0/1", 4)}


def test_a_feed_may_speak_instead_of_its_rows() -> None:
    example = drawn(ROW, _feed(instruction="match", target_instruction="", answers=False), _at(1), 0)
    assert (example.instruction, example.target_instruction, example.answer) == ("match", "", "")


def test_a_row_that_only_has_an_answer_trains_on_it_alone() -> None:
    alone = replace(ROW, positives=(), negatives=(), scores={})
    assert len(prompts(drawn(alone, _feed(), _at(1), 0), 0)) == 1
    with pytest.raises(DataError, match=r"toys/0/1: no positive and no answer.*train on answers"):
        drawn(alone, _feed(answers=False), _at(1), 0)


def test_scores_that_do_not_fit_the_answers_are_refused_with_the_key() -> None:
    with pytest.raises(DataError, match="toys/0/1: 3 scores 'label' for 5 positives and 3 negatives"):
        drawn(replace(ROW, scores={"label": (1.0, 2.0, 3.0)}), _feed(), _at(1), 0)
