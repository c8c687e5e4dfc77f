"""Messages between processes, and whether all ranks stand on the same ground."""

import threading

import pytest
from omni2vec.launch.board import agree, differing, opened
from omni2vec.launch.place import Place
from omni2vec.launch.words import RecipeError


@pytest.fixture
def board():
    made, _ = opened()
    return made


def test_a_message_is_there_for_who_looks_and_for_who_waits(board):
    assert board.look("a") is None and board.wait("a", 0.1) is None
    board.put("a", {"x": [1, None]})
    assert board.look("a") == board.wait("a") == {"x": [1, None]}


def test_boards_of_other_names_are_apart_and_names_add_up(board):
    board.under("x/y").put("a", 1)
    assert board.look("a") is None and board.under("x").under("y").look("a") == 1


def test_one_alone_comes_first(board):
    assert [board.add("failed") for _ in range(3)] == [1, 2, 3]


def test_equal_ranks_differ_in_nothing():
    assert differing([("a", {"torch": "2.14"}), ("b", {"torch": "2.14"})]) == []


def test_the_few_that_differ_are_named_with_host_and_fact():
    rows = [("a", {"torch": "2.13", "train.lr": "1"})] + [("b", {"torch": "2.14", "train.lr": "1"})] * 3
    assert differing(rows) == ["rank 0 on host a: torch is 2.13, but 2.14 on rank 1 on host b"]


def test_of_two_that_differ_rank_0_is_the_measure():
    assert differing([("a", {"x": "1"}), ("b", {})]) == ["rank 1 on host b: x is (absent), but 1 on rank 0 on host a"]


def test_a_rank_with_an_error_is_named_with_that_alone():
    rows = [("a", {"x": "1", "y": "2"}), ("b", {"error": "recipe.py: no such recipe"})]
    assert differing(rows) == ["rank 1 on host b: recipe.py: no such recipe"]


def agreed(board, *facts):
    """What each rank, a thread of its own, raised."""
    raised = {}

    def rank(number):
        try:
            agree(board, Place(number, len(facts), 0, 1, "", 0), facts[number])
        except RecipeError as error:
            raised[number] = str(error)

    threads = [threading.Thread(target=rank, args=(n,)) for n in range(len(facts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return raised


def test_ranks_on_the_same_ground_go_on(board):
    assert agreed(board, {"x": "1"}, {"x": "1"}) == {}


def test_ranks_that_differ_leave_together_with_the_same_words(board):
    raised = agreed(board, {"x": "1"}, {"x": "2"})
    assert set(raised) == {0, 1} and raised[0] == raised[1] and "x is 2, but 1 on rank 0" in raised[0]


def test_of_many_differences_the_first_are_told_and_the_rest_counted(board):
    raised = agreed(board, {str(i): "1" for i in range(30)}, {str(i): "2" for i in range(30)})
    assert raised[0].count("rank 1 on host") == 20 and "and 10 more" in raised[0]
