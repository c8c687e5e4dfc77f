"""Which answers a draw takes, what is rendered of them, and which examples may stand in front."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from omni2vec.data.counter import choose
from omni2vec.data.instruct import demonstrations, drawn, fits, prompts
from omni2vec.data.instructions import Instructions
from omni2vec.data.mix import Feed
from omni2vec.data.relation import Relation
from omni2vec.data.schedules import Phases, Ramp
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
    assert drawn(ROW, feed, _at(1), 7) == drawn(ROW, feed, Clock(99, 0.0, 1), 7)  # no step in it
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


TEN = replace(ROW, negatives=tuple(Item.text(f"wrong {k}") for k in range(10)), scores={})


def _negatives(example: Example, clock: Clock, draw: int, **settings: object) -> list[int]:
    picked = drawn(example, _feed(**settings), clock, draw).negatives
    return [example.negatives.index(i) for i in picked]


def test_without_hardness_negatives_are_drawn_as_they_always_were() -> None:
    row = replace(ROW, negatives=TEN.negatives[:9], scores={})
    feed = _feed(positives=2, negatives=3)
    recorded = [("03", "148"), ("34", "146"), ("04", "037"), ("03", "678"), ("02", "368"), ("12", "128")]
    for draw, (right, wrong) in enumerate(recorded):
        found = drawn(row, feed, _at(7, 0.4), draw)
        assert found.positives == tuple(row.positives[int(k)] for k in right)
        assert found.negatives == tuple(row.negatives[int(k)] for k in wrong)
    for draw in range(100):
        assert _negatives(TEN, _at(3), draw, negatives=4) == choose(10, 4, 3, "negatives", draw, TEN.key)


@pytest.mark.parametrize(("hardness", "pool"), [(0.0, 10), (0.25, 8), (0.5, 6), (0.9, 3), (1.0, 2)])
def test_two_of_ten_negatives_come_evenly_from_the_hardest(hardness: float, pool: int) -> None:
    draws = 3000
    counts = Counter(k for d in range(draws) for k in _negatives(TEN, _at(1), d, negatives=2, hardness=hardness))
    assert set(counts) == set(range(pool))  # 2 + round((1 - h) (10 - 2))
    expected = draws * 2 / pool
    assert max(abs(n - expected) for n in counts.values()) < 4.5 * expected**0.5


def test_a_row_with_no_more_negatives_than_asked_for_gives_all_at_any_hardness() -> None:
    for hardness in (0.0, 0.5, 1.0):
        assert _negatives(ROW, _at(1), 0, negatives=3, hardness=hardness) == [0, 1, 2]
        assert _negatives(ROW, _at(1), 0, negatives=7, hardness=hardness) == [0, 1, 2]
        assert _negatives(ROW, _at(1), 0, negatives=0, hardness=hardness) == []


def test_number_and_hardness_follow_the_progress_of_the_stage() -> None:
    feed = {"negatives": Ramp(0, 4), "hardness": Phases(((0.0, 0.0), (0.5, 1.0)))}
    numbers = [len(_negatives(TEN, _at(1, p), 0, **feed)) for p in (0.0, 0.1, 0.2, 0.4, 0.5, 0.7, 1.0)]
    assert numbers == [0, 0, 1, 2, 2, 3, 4]
    assert all(_negatives(TEN, _at(1, 1.0), d, **feed) == [0, 1, 2, 3] for d in range(50))
    early = {k for d in range(200) for k in _negatives(TEN, _at(1, 0.4), d, **feed)}
    assert early == set(range(10))


def test_scores_stay_with_their_negatives_under_hardness() -> None:
    example = drawn(ROW, _feed(positives=1, negatives=2, hardness=1.0), _at(1), 0)
    assert example.scores["label"][1:] == (0.5, 0.25)


def test_a_feed_s_instructions_are_told_apart_by_side() -> None:
    told = Instructions(query={"retrieval": ("one", "two")}, target={"retrieval": ("left", "right")})
    found = Counter(
        (e.instruction, e.target_instruction)
        for d in range(4000)
        for e in [drawn(ROW, _feed(instructions=told), _at(1), d)]
    )
    assert len(found) == 4  # each side of its own
    assert all(abs(n - 1000) < 120 for n in found.values())  # standard deviation 27
    kept = drawn(ROW, _feed(instructions=Instructions(query={"sts": ("other",)})), _at(1), 0)
    assert (kept.instruction, kept.target_instruction) == ("find it", "describe it")


def test_demonstrations_stand_on_the_query_alone_with_their_right_answer() -> None:
    shots = [replace(ROW, key=f"toys/1/{k}", query=Item.text(f"asked {k}"), answer="") for k in range(2)]
    answered = replace(ROW, key="toys/1/9", query=Item.text("asked 9"), positives=(), negatives=(), answer="because")
    query, *targets = prompts(drawn(ROW, _feed(negatives=2), _at(1), 0), 0, [*shots, answered])
    assert query.shots == (
        (shots[0].query, shots[0].positives[0]),
        (shots[1].query, shots[1].positives[0]),
        (answered.query, Item.text("because")),
    )
    assert all(t.shots == () for t in targets)
    assert prompts(ROW, 0) == prompts(ROW, 0, ())


@pytest.mark.parametrize(("size", "row"), [(1, 0), (2, 1), (7, 0), (7, 3), (7, 6)])
def test_demonstrations_are_the_other_rows_each_once(size: int, row: int) -> None:
    found = list(demonstrations(size, row, 2, seed=1, source=0, draw=5))
    assert sorted(found) == [r for r in range(size) if r != row]
    assert found == list(demonstrations(size, row, 2, seed=1, source=0, draw=5))


def test_every_other_row_demonstrates_about_as_often_in_every_place() -> None:
    draws = 3000
    found = [tuple(demonstrations(5, 2, 4, seed=3, source=1, draw=d)) for d in range(draws)]
    counts = Counter(found)
    assert len(counts) == 24  # all orders of rows 0, 1, 3, 4
    expected = draws / 24
    assert max(abs(n - expected) for n in counts.values()) < 4.5 * expected**0.5


def test_demonstrations_of_a_huge_source_cost_what_is_taken() -> None:
    size = 10**12
    rows = list(demonstrations(size, 17, 2, seed=1, source=0, draw=0))
    assert len(rows) == len(set(rows)) == 32  # 16 a demonstration, then the search ends
    assert all(0 <= r < size and r != 17 for r in rows)
    assert list(demonstrations(size, 17, 0, seed=1, source=0, draw=0)) == []


def test_what_shows_the_sample_or_its_answer_does_not_fit() -> None:
    other = Example("toys/0/2", "toys", "retrieval", Item.text("else"), (Item.text("elsewise"),))
    assert fits(ROW, other)
    assert not fits(ROW, replace(other, key=ROW.key))
    assert not fits(replace(ROW, key="toys/0/1#a-b"), replace(other, key="toys/0/1#b-a"))  # one row, two patterns
    assert not fits(ROW, replace(other, query=ROW.query))
    assert not fits(ROW, replace(other, positives=(ROW.positives[3],)))  # drawn or not
    assert not fits(ROW, replace(other, known=("elsewhere",)))
    assert not fits(ROW, replace(other, query=ROW.positives[0]))
    assert not fits(ROW, replace(other, positives=(ROW.query,)))


def test_an_answer_to_generate_is_not_shown_where_a_demonstration_generates_the_same() -> None:
    alone = replace(ROW, positives=(), negatives=(), scores={}, known=())
    other = replace(alone, key="toys/0/2", query=Item.text("else"))
    assert alone.answer == other.answer == "yes"
    assert not fits(alone, other)
    assert not fits(ROW, other)  # its positives are embedded, and "yes" is generated
    assert not fits(alone, replace(other, answer="", positives=(Item.text("yes"),)))
    assert fits(alone, replace(other, answer="no"))
    assert fits(alone, replace(other, positives=(Item.text("elsewise"),)))  # which is shown in place of its answer
    assert fits(replace(alone, task="vqa"), replace(other, task="vqa"))
    assert not fits(alone, replace(other, query=Item.text("yes"), answer="no"))


@pytest.mark.parametrize("shared", [{"task": "classification"}, {"task": "vqa"}, {"task": "retrieval", "label": "x"}])
def test_answers_that_rows_share_say_nothing_of_the_sample(shared: dict[str, str]) -> None:
    """Were its own class refused, the demonstrations of two classes would spell it out."""
    yes, no = Item.text("yes"), Item.text("no")
    rows = [
        replace(ROW, key=str(k), query=Item.text(f"q{k}"), positives=((yes, no)[k % 2],), **shared) for k in range(40)
    ]
    rows = [replace(r, negatives=(), scores={}, known=()) for r in rows]  # type: ignore[misc]
    shown = Counter()
    for draw in range(50):
        for k, row in enumerate(rows):
            fitting = (r for r in demonstrations(40, k, 1, 1, 0, draw) if fits(row, rows[r]))
            shown[rows[next(fitting)].positives == row.positives] += 1
    assert abs(shown[True] / shown.total() - 19 / 39) < 0.05  # as often as chance has it
