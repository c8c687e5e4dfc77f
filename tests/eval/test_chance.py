"""Closed forms of chance against the mean over every permutation."""

from itertools import permutations
from statistics import fmean

import pytest
from omni2vec.eval.chance import chance
from omni2vec.eval.metrics import value

NAMES = [f"{family}@{k}" for family in ("hit", "precision", "recall", "f1", "mrr", "map") for k in (1, 3, 9)]
NAMES += [f"{family}@{k}" for family in ("ndcg_linear", "ndcg_exponential") for k in (1, 3)]
NAMES += ["mrr", "map", "ndcg_linear"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gains", [(1.0,), (1.0, 1.0), (3.0, 1.0, 2.0), (1.0,) * 6])
def test_chance_equals_the_mean_over_all_permutations(name: str, gains: tuple[float, ...]) -> None:
    places = permutations(range(1, 7), len(gains))
    expected = fmean(value(name, ranks, gains) for ranks in places)
    assert chance(name, 6, len(gains), gains) == pytest.approx(expected)


def test_chance_of_a_large_pool_neither_overflows_nor_vanishes() -> None:
    assert chance("hit@10", 100_000, 1) == pytest.approx(1e-4)
    assert chance("hit@10", 100_000, 500) == pytest.approx(1 - (1 - 0.005) ** 10, rel=1e-3)
    assert chance("mrr", 1_000, 1) == pytest.approx(sum(1 / r for r in range(1, 1_001)) / 1_000)


@pytest.mark.parametrize("right", [0, 4])
def test_no_right_answer_or_more_than_candidates_are_refused(right: int) -> None:
    with pytest.raises(ValueError, match=f"{right} right answers among 3 candidates"):
        chance("hit@1", 3, right)
