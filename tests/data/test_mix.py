"""Shares of a mixture: exact in each cycle, seekable, and refused where they make no sense."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from omni2vec.data.mix import Feed
from omni2vec.data.sources import Shards
from omni2vec.data.turns import Mixture, schedule


def _cycle(turns: object) -> Mixture:
    assert isinstance(turns, Mixture)
    return turns


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((1,), (1,)),
        ((1, 1), (1, 1)),
        ((1, 2, 0.5), (2, 4, 1)),
        ((0.1, 0.2, 0.7), (1, 2, 7)),
        ((3, 0, 1), (3, 0, 1)),
    ],
)
def test_simple_shares_come_in_the_shortest_exact_cycle(weights: tuple[float, ...], counts: tuple[int, ...]) -> None:
    assert _cycle(schedule(weights, seed=0)).counts == counts


def test_shares_that_no_short_cycle_meets_are_met_to_a_turn_at_the_end_of_any_block() -> None:
    turns = schedule((2**0.5, 1, 1e-7), seed=0)
    for block in (1, 2, 50):
        n = block << 14
        assert turns.had(n) == pytest.approx([n * w / (2**0.5 + 1 + 1e-7) for w in (2**0.5, 1, 1e-7)], abs=1.1)
    assert turns.sources(10**7, 3) == turns.sources(10**7 - 5, 8)[5:]


def test_a_thousand_sources_of_all_sizes_once_each_are_found_at_the_end() -> None:
    sizes = np.random.default_rng(0).lognormal(6, 2, 1000).astype(int) + 1
    turns = schedule(sizes, 0, sizes)
    end = int(sizes.sum())
    assert turns.had(end) == sizes.tolist()
    ((source, before),) = turns.sources(end - 1, 1)
    assert before == sizes[source] - 1


def test_every_cycle_holds_each_source_as_often_as_its_share_in_its_own_order() -> None:
    mixture = _cycle(schedule((1, 2, 0.5), seed=3))
    cycles = [[s for s, _ in mixture.sources(c * 7, 7)] for c in range(20)]
    assert all(Counter(c) == {0: 2, 1: 4, 2: 1} for c in cycles)
    assert len({tuple(c) for c in cycles}) > 10


def test_a_seek_into_the_mixture_equals_its_replay() -> None:
    mixture = _cycle(schedule((1, 2, 0.5), seed=3))
    had: Counter[int] = Counter()
    replayed = []
    for source, _ in mixture.sources(0, 100):
        replayed.append((source, had[source]))
        had[source] += 1
    assert mixture.sources(0, 100) == replayed
    for start in (0, 1, 6, 7, 8, 50, 93):
        assert mixture.sources(start, 7) == replayed[start : start + 7]


def test_a_seek_takes_no_longer_far_into_a_run() -> None:
    mixture = _cycle(schedule((1, 2, 0.5), seed=3))
    (source, before), *_ = mixture.sources(7 * 10**15, 1)
    assert before == 10**15 * mixture.counts[source]


@pytest.mark.parametrize("weights", [(), (0, 0), (1, -1), (1, float("nan"))])
def test_shares_that_make_no_sense_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights"):
        schedule(weights, seed=0)


def test_a_feed_refuses_a_negative_count_with_its_source() -> None:
    with pytest.raises(ValueError, match="feed 'toys': negatives=-1; expected 0 or more"):
        Feed(Shards("shards", name="toys"), negatives=-1)
