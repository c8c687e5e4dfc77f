"""The order of a source's rows: whole epochs, a few shards at a time, found without those before."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from omni2vec.data.deck import Deck

SIZES = np.random.default_rng(0).integers(0, 40, 120)  # some shards are empty
ENDS = SIZES.cumsum()


def _blocks(ends: np.ndarray, rows: list[int]) -> np.ndarray:
    return np.searchsorted(ends, rows, side="right")


@pytest.mark.parametrize("window", [1, 7, 64, 120, 1000])
def test_every_epoch_holds_every_row_once_in_an_order_of_its_own(window: int) -> None:
    deck = Deck(ENDS, window)
    epochs = [deck.rows(e * deck.size, deck.size, seed=1, source=0) for e in range(3)]
    assert all(sorted(e) == list(range(deck.size)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert epochs[0] != deck.rows(0, deck.size, seed=2, source=0)
    assert epochs[0] != deck.rows(0, deck.size, seed=1, source=1)


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_any_stretch_is_the_same_without_those_before_it(window: int) -> None:
    deck = Deck(ENDS, window)
    run = deck.rows(0, 3 * deck.size, seed=5, source=2)
    for first, count in ((0, 1), (13, 400), (deck.size - 10, 20), (2 * deck.size - 1, deck.size)):
        assert Deck(ENDS, window).rows(first, count, seed=5, source=2) == run[first : first + count]


def test_a_window_keeps_to_its_shards_and_shuffles_rows_within_them() -> None:
    ends, window = np.arange(1, 101) * 50, 8
    deck = Deck(ends, window)
    run = deck.rows(0, deck.size, seed=0, source=0)
    seen = []
    for w in range(0, 100, window):
        here = run[w * 50 : (w + window) * 50]
        blocks = _blocks(ends, here)
        assert len(set(blocks)) == min(window, 100 - w)
        assert (np.diff(blocks) != 0).mean() > 0.5  # not one shard after the other
        seen += sorted(set(blocks))
    assert sorted(seen) == list(range(100))
    assert seen != sorted(seen)


def test_as_few_shards_as_a_window_are_shuffled_as_a_whole() -> None:
    whole = Deck(np.array([500]), 64).rows(0, 500, seed=3, source=1)
    assert Deck(np.arange(1, 51) * 10, 64).rows(0, 500, seed=3, source=1) == whole


def test_places_of_a_window_are_uniform() -> None:
    """Chi-square of where row 0 lands over many epochs, 19 degrees of freedom: 43.8 is exceeded once in 1,000 runs."""
    deck = Deck(np.arange(1, 6) * 4, window=2)
    places = Counter(deck.rows(e * 20, 20, seed=9, source=0).index(0) for e in range(4000))
    assert sum((places[p] - 200) ** 2 / 200 for p in range(20)) < 43.8


def test_clusters_stay_together_whatever_rows_they_hold() -> None:
    members = np.random.default_rng(1).permutation(96)
    ends = np.arange(1, 13) * 8
    deck = Deck(ends, 1, members)
    run = deck.rows(0, 96, seed=0, source=0)
    groups = [frozenset(run[i : i + 8]) for i in range(0, 96, 8)]
    assert set(groups) == {frozenset(members[i : i + 8].tolist()) for i in range(0, 96, 8)}
    again = deck.rows(96, 96, seed=0, source=0)
    assert set(groups) == {frozenset(again[i : i + 8]) for i in range(0, 96, 8)}
    assert groups != [frozenset(again[i : i + 8]) for i in range(0, 96, 8)]


@pytest.mark.parametrize(("rows", "size"), [(1000, 32), (97, 8), (64, 8), (5, 8)])
def test_clusters_are_drawn_whole_in_every_epoch_but_for_one(rows: int, size: int) -> None:
    members = np.random.default_rng(1).permutation(rows)
    ends = np.minimum(np.arange(1, -(-rows // size) + 1) * size, rows)
    cluster = np.empty(rows, dtype=int)
    cluster[members] = np.arange(rows) // size
    deck, epochs = Deck(ends, 1, members), 7
    run = deck.rows(0, epochs * rows, seed=0, source=0)
    assert all(sorted(run[e * rows : (e + 1) * rows]) == list(range(rows)) for e in range(epochs))
    slots = [run[i : i + size] for i in range(0, len(run) - size + 1, size)]
    mixed = sum(len(set(cluster[s])) > 1 for s in slots)
    assert mixed <= 2 * epochs if rows % size else mixed == 0
    assert deck.rows(3 * rows + 5, rows, seed=0, source=0) == run[3 * rows + 5 : 4 * rows + 5]


def test_a_thousand_million_rows_cost_the_memory_of_their_shards() -> None:
    tracemalloc.start()
    deck = Deck(np.arange(1, 100_001) * 10_000)
    rows = deck.rows(123_456_789_012, 4096, seed=0, source=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(rows)) == 4096
    assert len(set(_blocks(deck.ends, rows))) <= 64
    assert peak < 200 * 100_000  # bytes a shard
