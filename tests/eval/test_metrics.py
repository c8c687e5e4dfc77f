"""Metrics against scikit-learn, against closed forms, and on cases small enough to do by hand."""

import numpy as np
import pytest
from omni2vec.eval import metrics
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score


def random_query(seed: int, n: int = 30, right: int = 4) -> tuple[np.ndarray, np.ndarray, list[int], list[float]]:
    """Scores and gains of all n candidates, then ranks and gains of the right ones."""
    rng = np.random.default_rng(seed)
    scores, gains = rng.normal(size=n), np.zeros(n)
    gains[rng.choice(n, right, replace=False)] = rng.integers(1, 4, right)
    place = np.argsort(np.argsort(-scores)) + 1
    answers = np.flatnonzero(gains)
    return scores, gains, place[answers].tolist(), gains[answers].tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 5, None])
def test_ndcg_equals_scikit_learn(seed: int, k: int | None) -> None:
    scores, gains, ranks, right = random_query(seed)
    assert metrics.ndcg(ranks, right, k) == pytest.approx(ndcg_score([gains], [scores], k=k))
    exponential = ndcg_score([2**gains - 1], [scores], k=k)
    assert metrics.ndcg(ranks, right, k, exponential=True) == pytest.approx(exponential)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_scikit_learn(seed: int) -> None:
    scores, gains, ranks, _ = random_query(seed)
    expected = label_ranking_average_precision_score([gains > 0], [scores])
    assert metrics.average_precision(ranks) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hit@1", 0.0),
        ("hit@2", 1.0),
        ("precision@5", 2 / 5),
        ("recall@5", 2 / 3),
        ("f1@5", 2 * (2 / 5) * (2 / 3) / (2 / 5 + 2 / 3)),
        ("mrr@1", 0.0),
        ("mrr", 1 / 2),
        ("map@5", (1 / 2 + 2 / 5) / 3),
        ("map@2", (1 / 2) / 2),  # divided by min(right answers, k)
        ("map", (1 / 2 + 2 / 5 + 3 / 7) / 3),
        ("ndcg_linear@2", (1 / np.log2(3)) / (1 + 1 / np.log2(3))),
    ],
)
def test_ranks_2_5_and_7_by_hand(name: str, expected: float) -> None:
    assert metrics.value(name, [5, 2, 7]) == pytest.approx(expected)


def test_precision_divides_by_k_even_where_fewer_answers_exist() -> None:
    assert metrics.precision([1], 10) == pytest.approx(0.1)


def test_binary_gains_make_both_kinds_of_ndcg_equal() -> None:
    assert metrics.value("ndcg_linear@5", [2, 4]) == metrics.value("ndcg_exponential@5", [2, 4])


@pytest.mark.parametrize("name", ["hit", "recall", "accuracy@1", "hit@", "ndcg@5"])
def test_an_unknown_metric_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="known are f1, hit, map, mrr"):
        metrics.value(name, [1])


def test_spearman_without_ties_is_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.permutation(50), rng.permutation(50)
    assert metrics.spearman(a, b) == pytest.approx(1 - 6 * ((a - b) ** 2).sum() / (50 * (50**2 - 1)))


def test_spearman_with_ties_is_pearson_of_mean_ranks() -> None:
    a, b = [1, 2, 2, 3], [10.0, 10.0, 30.0, 20.0]
    expected = np.corrcoef([1, 2.5, 2.5, 4], [1.5, 1.5, 4, 3])[0, 1]
    assert metrics.spearman(a, b) == pytest.approx(expected)


def test_spearman_of_a_constant_is_zero() -> None:
    assert metrics.spearman([1, 1, 1], [1, 2, 3]) == 0.0
