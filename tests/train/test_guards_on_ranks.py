"""Two ranks: the one that hangs is named by one of them alone, and what one runs into both know."""

from pathlib import Path

import pytest

from .. import ranks

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    root = str(HERE.parent.parent)
    return ranks.run(
        HERE / "ranks_of_guards.py", 2, tmp_path_factory.mktemp("guards"), timeout=120, env={"PYTHONPATH": root}
    )


def test_the_rank_that_is_behind_is_named_with_its_section_and_function(said):
    (((behind, step, where, text),), silent) = (r["behind"]["heard"] for r in said)
    assert (behind, step, where, silent) == ([1], 2, "forward", [])
    assert "rank 1 (host " in text
    assert "is behind: step 2, forward, in decode_a_broken_film (" in text
    assert "rank 0" not in text


def test_of_ranks_in_the_same_section_the_one_that_waits_for_nobody_is_named(said):
    ((behind, _, where, text),) = said[0]["same"]["heard"]
    assert (behind, where) == ([1], "gather")
    assert "decode_a_broken_film" in text


def test_every_rank_leaves_its_stack(said):
    assert "decode_a_broken_film" in said[1]["behind"]["stacks"]
    assert "all_reduce" in said[0]["behind"]["stacks"]
    assert "rank 1, step 2, forward" in said[1]["behind"]["stacks"]


def test_a_section_may_be_allowed_more_and_nothing_is_left_behind(said):
    assert [r["slow"]["heard"] for r in said] == [0, 0]
    assert said[0]["slow"]["left"] == []


def test_a_flag_that_one_rank_raises_is_up_on_all_behind_one_exchange(said):
    assert said[0]["raised"] == said[1]["raised"] == {"asked": True, "full": False, "finite": True, "calls": 1}


def test_a_row_that_one_rank_finds_broken_is_named_on_all(said):
    for found in (r["blamed"] for r in said):
        assert (found["not_finite"], found["rows"], found["keys"]) == ("vectors", 1, [found["expected"]])


def test_where_one_rank_has_no_room_all_halve_their_chunks_until_it_has(said):
    assert [r["settled"] for r in said] == [{"tokens": 50, "tried": [200, 100, 50], "fits": True, "gone": True}] * 2


def test_the_largest_footprint_and_the_smallest_budget_count(said):
    assert [r["agreed"] for r in said] == [[11.0, 3.0, 999, 50]] * 2
