"""Yes/no rows: which candidate stands where, stable keys, and that no right answer is called wrong."""

import pickle

import numpy as np
import pytest
from omni2vec.data.asking import Asked, question_of
from omni2vec.data.instruct import drawn
from omni2vec.data.mix import Feed
from omni2vec.data.types import Clock, DataError, Example, Item, Text

from ..train.toy import ToyRows


def row(i, negatives=(), positives=None, **fields):
    right = (Item.text(f"answer {i}"),) if positives is None else positives
    return Example(
        f"rows/{i}", "rows", "retrieval", Item.text(f"question {i}"), right, tuple(map(Item.text, negatives)), **fields
    )


def opened(rows, **settings):
    return Asked(ToyRows("rows", tuple(rows)), **settings).open(None)


def said(example):
    return "".join(p.text for p in example.query.parts if isinstance(p, Text))


def test_a_row_gives_a_yes_and_a_no_that_hold_query_question_and_candidate():
    found = opened([row(0, ["wrong a", "wrong b"], instruction="judge")], question="Fits?")
    yes, no = found
    assert said(yes) == "Query: question 0\nCandidate: answer 0\nFits?"
    assert said(no) == "Query: question 0\nCandidate: wrong a\nFits?"
    assert [(e.key, e.answer, e.source, e.instruction) for e in found] == [
        ("rows/0#yes-0", "Yes", "rows-asked", "judge"),
        ("rows/0#no-0", "No", "rows-asked", "judge"),
    ]
    assert not yes.positives and not yes.negatives


def test_a_feed_draws_them_with_their_answers():
    source = Asked(ToyRows("rows", (row(0, ["wrong"]),)))
    assert drawn(source.open(None)[1], Feed(source), Clock(0, 0.0, 0), 0).answer == "No"


def test_drawn_negatives_are_other_rows_positives_each_once_and_always_the_same():
    rows = [row(i, ["own wrong"] if i % 2 else []) for i in range(12)]
    found, again = (opened(rows, negatives=4) for _ in range(2))
    for i in range(12):
        mine = [said(found[5 * i + k]) for k in range(5)]
        assert len(set(mine)) == 5 and f"Candidate: answer {i}\n" in mine[0]
        assert all(f"Candidate: answer {i}\n" not in text for text in mine[1:])
        assert ("own wrong" in mine[1]) == bool(i % 2)
    assert [e.query.id for e in found] == [e.query.id for e in again]
    assert [e.query.id for e in found] != [e.query.id for e in opened(rows, negatives=4, seed=1)]


def test_right_answers_the_own_query_and_the_own_class_are_never_called_wrong():
    shared = Item.text("shared")
    rows = [
        row(0, ["answer 0", "question 0"], known=(Item.text("answer 1").id,), label="red"),
        row(1),
        row(2, label="red"),
        row(3, positives=(Item.text("question 0"),)),
        row(4, positives=(Item.text("answer 0"), shared)),
        Example("rows/5", "rows", "retrieval", Item.text("question 0"), (Item.text("twin's answer"),)),
        row(6),
    ]
    for seed in range(20):
        assert "Candidate: answer 6\n" in said(opened(rows, seed=seed)[1])


def test_a_row_without_a_wrong_answer_anywhere_is_named():
    twins = opened([row(0, label="x"), row(1, label="x")])
    assert twins[0].answer == "Yes"
    with pytest.raises(DataError, match="rows/0: found no wrong answer number 1"):
        twins[1]


def test_rows_without_a_positive_are_left_out_and_none_at_all_is_an_error():
    found = opened([row(0, positives=()), row(1, ["w"]), row(2, ["w"])])
    assert [e.key for e in found] == ["rows/1#yes-0", "rows/1#no-0", "rows/2#yes-0", "rows/2#no-0"]
    with pytest.raises(DataError, match="none of 1 rows has a positive"):
        opened([row(0, positives=())])


def test_only_yes_rows_where_no_negatives_are_asked_for():
    assert [e.answer for e in opened([row(0), row(1)], negatives=0)] == ["Yes", "Yes"]


def test_blocks_follow_those_of_the_source_and_rows_are_pickled():
    class Blocks(ToyRows):
        ends = np.array([2, 3])

    source = Blocks("rows", (row(0, ["w"]), row(1, positives=()), row(2, ["w"])))
    found = Asked(source).open(None)
    assert found.ends.tolist() == [2, 4]
    plain = opened([row(0, ["w"]), row(1, ["w"])])
    assert pickle.loads(pickle.dumps(plain))[3].key == "rows/1#no-0"


def test_the_digest_follows_what_is_asked():
    rows = [row(0, ["w"])]
    digests = {
        opened(rows, **s).digest for s in ({}, {"question": "?"}, {"yes": "True"}, {"negatives": 2}, {"seed": 1})
    }
    assert len(digests) == 5


def test_the_identity_of_a_question_is_that_of_its_query_candidate_and_words():
    a, b = Item.text("a"), Item.text("b")
    assert len({question_of(a, b).id, question_of(b, a).id, question_of(a, b, "?").id}) == 3


@pytest.mark.parametrize(("settings", "word"), [({"negatives": -1}, "negatives"), ({"yes": "No"}, "unlike")])
def test_settings_out_of_range_are_refused(settings, word):
    with pytest.raises(DataError, match=word):
        Asked(ToyRows("rows", ()), **settings)
