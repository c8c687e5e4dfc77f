"""Counter-based draws: bijections for every size, equal for ever, and even."""

from __future__ import annotations

import numpy as np
import pytest
from omni2vec.data.counter import bits, choose, permuted

BIG = (1 << 16) + 1  # the first size that is computed place by place


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, BIG, 200_000])
def test_a_permutation_gives_every_number_once(size: int) -> None:
    found = permuted(np.arange(size), size, 7, "rows")
    assert np.array_equal(np.sort(found), np.arange(size))


@pytest.mark.parametrize("size", [1000, BIG])
def test_a_place_of_a_permutation_does_not_depend_on_what_else_is_asked(size: int) -> None:
    whole = permuted(np.arange(size), size, 7)
    places = np.array([size - 1, 5, 0, 5])
    assert np.array_equal(permuted(places, size, 7), whole[places])


@pytest.mark.parametrize("size", [1000, BIG])
def test_another_key_gives_another_permutation(size: int) -> None:
    places = np.arange(1000)
    one, two = permuted(places, size, 7, 0), permuted(places, size, 7, 1)
    assert (one == two).mean() < 0.02
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.1
    assert abs(np.corrcoef(one, places)[0, 1]) < 0.1


def test_a_trillion_rows_need_no_memory() -> None:
    found = permuted(np.arange(5), 10**12, 7)
    assert len(set(found.tolist())) == 5
    assert found.min() >= 0
    assert found.max() < 10**12


def test_draws_are_these_for_ever() -> None:
    assert bits(1, "a", 2) == 0xDB736124050A3BA9
    assert permuted(np.arange(6), 6, 1).tolist() == [0, 3, 5, 2, 4, 1]
    assert permuted(np.arange(3), BIG, 1).tolist() == [13672, 35527, 57918]


def test_every_order_of_three_is_about_as_frequent() -> None:
    orders = [tuple(permuted(np.arange(3), 3, seed).tolist()) for seed in range(6000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 880  # 1000 each, standard deviation 29
    assert counts.max() < 1120


def test_chosen_numbers_differ_ascend_and_are_all_where_there_are_no_more() -> None:
    assert choose(3, 5, 1) == [0, 1, 2]
    assert choose(0, 2, 1) == []
    picks = [choose(5, 2, seed) for seed in range(2000)]
    assert all(a < b for a, b in picks)
    counts = np.bincount([i for pick in picks for i in pick])
    assert counts.min() > 700  # 800 each, standard deviation 22
