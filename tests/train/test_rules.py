"""Each rule against what its paper says, on numbers; chains; samples; and the same mining by sentence-transformers."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from omni2vec.train.rules import (
    LEFT,
    SHORT,
    Above,
    Below,
    BelowJudged,
    Consistent,
    MarginToMean,
    PercentOfPositive,
    PositiveAbove,
    RankRange,
    View,
    chain,
)
from omni2vec.train.samples import Drawn, Every, Hardest, pooled
from omni2vec.train.words import Fused, fuse

NAN = float("nan")


def view(score, positive, kept=None, ask=None):
    score = np.array(score, np.float32)
    return View(score, np.array(positive, np.float32), ~np.isnan(score) if kept is None else np.array(kept), ask)


def drawn(seed=0, n=40, k=30, p=3):
    """Sorted scores with short lists, and some positives."""
    rng = np.random.default_rng(seed)
    score = -np.sort(-rng.uniform(-1, 1, (n, k)).astype(np.float32), axis=1)
    score[np.arange(k) >= rng.integers(1, k + 1, (n, 1))] = NAN
    positive = rng.uniform(-1, 1, (n, p)).astype(np.float32)
    positive[np.arange(p) >= rng.integers(1, p + 1, (n, 1))] = NAN
    return View(score, positive, ~np.isnan(score))


RULES = (RankRange(2, 10), PercentOfPositive(), Below(0.2), Above(-0.2), MarginToMean(0.1))


def test_ranks_are_counted_from_one():
    assert RankRange(2, 3).keep(view([[0.9, 0.8, 0.7, 0.6]], [[1.0]])).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(
    ("positive", "share", "bound"), [(0.8, 0.95, 0.76), (0.8, 1.0, 0.8), (-0.4, 0.95, -0.42), (0.0, 0.95, 0.0)]
)
def test_a_share_of_the_positive_is_below_it_whatever_its_sign(positive, share, bound):
    scores = [[bound + 0.001, bound - 0.001]]
    assert PercentOfPositive(share).keep(view(scores, [[positive]])).tolist() == [[False, True]]


def test_of_several_positives_the_least_like_the_query_is_the_bound_and_the_mean_the_mean():
    seen = view([[0.75, 0.55, 0.4]], [[0.8, 0.5, NAN]])
    assert PercentOfPositive(0.95).keep(seen).tolist() == [[False, False, True]]
    assert MarginToMean(0.0).keep(seen).tolist() == [[False, True, True]]  # the mean is 0.65
    assert MarginToMean(-0.2).keep(seen).tolist() == [[False, False, True]]


def test_absolute_bounds():
    seen = view([[0.71, 0.7, 0.69]], [[1.0]])
    assert Below(0.7).keep(seen).tolist() == [[False, False, True]]
    assert Above(0.7).keep(seen).tolist() == [[True, False, False]]


@pytest.mark.parametrize("seed", range(3))
def test_more_is_kept_as_a_bound_rises(seed):
    seen = drawn(seed)
    for rule, values in (
        (PercentOfPositive, (0.5, 0.8, 0.95, 1.0)),
        (Below, (-0.5, 0.0, 0.5)),
        (MarginToMean, (-0.3, 0.0, 0.3)),
        (lambda last: RankRange(1, last), (3, 9, 20)),
        (lambda least: Above(-least), (-0.5, 0.0, 0.5)),
    ):
        kept = [chain((rule(v),), seen).kept for v in values]
        assert all((low <= high).all() for low, high in pairwise(kept))
        assert kept[0].sum() < kept[-1].sum()


def test_short_lists_have_nothing_that_any_rule_keeps():
    for rule in RULES:
        assert not (chain((rule,), drawn()).kept & np.isnan(drawn().score)).any()
    assert (chain((), drawn()).by == np.where(np.isnan(drawn().score), SHORT, LEFT)).all()


def test_a_row_goes_where_its_best_positive_is_behind_the_top():
    seen = view([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7], [0.5, NAN, NAN]], [[0.85, 0.1], [0.75, NAN], [0.1, NAN]])
    assert Consistent(1).rows(seen).tolist() == [False, False, False]
    assert Consistent(2).rows(seen).tolist() == [True, False, True]
    assert Consistent(3).rows(seen).tolist() == [True, True, True]


def test_positives_are_refined_and_rows_without_any_go():
    verdict = chain((PositiveAbove(0.3),), view([[0.5], [0.5]], [[0.4, 0.2], [0.1, 0.3]]))
    assert verdict.positive.tolist() == [[True, False], [False, False]]
    assert verdict.row.tolist() == [LEFT, 0] and verdict.kept.tolist() == [[True], [False]]


def test_each_rule_sees_what_those_before_it_left_and_the_order_counts():
    seen = view([[0.6, 0.45, 0.3]], [[0.8, 0.4]])
    refined = chain((PositiveAbove(0.5), PercentOfPositive(0.95)), seen)
    assert refined.kept.tolist() == [[True, True, True]]  # the bound is .76 once 0.4 is gone
    assert chain((PercentOfPositive(0.95), PositiveAbove(0.5)), seen).kept.tolist() == [[False, False, True]]
    assert chain((Below(0.5), RankRange(1, 1)), seen).by.tolist() == [[0, 1, 1]]  # ranks are those of the search
    assert chain((RankRange(1, 1), Below(0.5)), seen).by.tolist() == [[1, 0, 0]]


def judged(candidates, positives, asked):
    def ask(rule, mask, seen):
        asked.append(mask.copy())
        return np.where(mask, np.array(candidates, np.float32), np.float32(NAN)), np.array(positives, np.float32)

    return ask


def test_a_judge_is_asked_for_what_is_left_and_bounds_by_its_own_score_of_the_positive():
    asked = []
    ask = judged([[0.5, 0.895, 0.88, 0.1]], [[0.9, 0.95]], asked)
    seen = view([[0.9, 0.8, 0.7, 0.6]], [[0.5, 0.5]], ask=ask)
    verdict = chain((RankRange(2, 4), BelowJudged(None, beta=0.01, first=2)), seen)
    assert asked[0].tolist() == [[False, True, True, False]]
    assert verdict.by.tolist() == [[0, 1, LEFT, 1]]  # .895 is not below .89; the last was not asked for
    chain((BelowJudged(None, first=0),), seen)
    assert asked[1].all()


def test_values_that_cannot_be_are_refused():
    for make in (
        lambda: RankRange(0, 5),
        lambda: RankRange(6, 5),
        lambda: PercentOfPositive(0.0),
        lambda: PercentOfPositive(1.1),
        lambda: Consistent(0),
        lambda: BelowJudged(None, first=-1),
        lambda: Every(0),
        lambda: Fused(0.0),
    ):
        with pytest.raises(ValueError, match="expected"):
            make()


def test_samples_are_ascending_and_short_lists_are_given_whole():
    left = np.array([3, 4, 7, 9, 12, 20, 21, 30])
    assert Hardest().pick(left, 3, 0, 0).tolist() == [3, 4, 7]
    assert Every(5).pick(left, 4, 0, 0).tolist() == [3, 4, 20, 21]
    assert Every(1).pick(left, 2, 0, 0).tolist() == [3, 4]
    for sample in (Hardest(), Every(5), Drawn()):
        assert sample.pick(left, 99, 0, 0).tolist() == left.tolist()
        assert sample.pick(left[:0], 3, 0, 0).tolist() == []
    some = Drawn().pick(left, 3, 0, 5)
    assert some.tolist() == sorted(set(some.tolist())) and some.tolist() == Drawn().pick(left, 3, 0, 5).tolist()
    seen = Counter(x for row in range(400) for x in Drawn().pick(left, 2, 0, row).tolist())
    assert all(70 < seen[x] < 130 for x in left.tolist())  # 100 each


def test_a_pool_is_drawn_in_proportion_to_its_counts_and_nothing_barred():
    pool, times = np.array([2, 5, 6, 8]), np.array([6, 3, 1, 50])
    rows = 4000
    first = Counter(int(pooled(pool, times, np.array([8]), 1, 0, row)[0]) for row in range(rows))
    for document, share in ((2, 0.6), (5, 0.3), (6, 0.1)):
        assert abs(first[document] / rows - share) < 4 * math.sqrt(share * (1 - share) / rows)
    assert sorted(pooled(pool, times, np.array([8]), 9, 0, 1).tolist()) == [2, 5, 6]


def test_fused_ranks_are_the_sum_of_reciprocals():
    vectors, words = np.array([4, 1, 7]), np.array([7, 9])
    # k = 60: 7 has 1/63 + 1/61, 4 has 1/61, 1 has 1/62, 9 has 1/62 and comes behind what the vectors know.
    assert fuse(vectors, words, Fused(), 10).tolist() == [7, 4, 1, 9]
    assert fuse(vectors, words, Fused(weight=3.0), 2).tolist() == [7, 9]
    assert fuse(vectors, words[:0], Fused(), 2).tolist() == [4, 1]


def theirs(queries, documents, right, **settings):
    """What sentence_transformers.util.mine_hard_negatives finds, as lists of documents."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    import torch
    from sentence_transformers.util import mine_hard_negatives

    class Model:
        device = torch.device("cpu")

        def encode_query(self, texts, **_):
            return np.stack([queries[int(t)] for t in texts])

        def encode_document(self, texts, **_):
            return np.stack([documents[int(t)] for t in texts])

        def similarity(self, a, b):
            return torch.as_tensor(a) @ torch.as_tensor(b).T

        def similarity_pairwise(self, a, b):
            return (torch.as_tensor(a) * torch.as_tensor(b)).sum(1)

    rows = datasets.Dataset.from_dict(
        {"query": [str(i) for i in range(len(queries))], "answer": [str(r) for r in right]}
    )
    found = mine_hard_negatives(
        rows,
        Model(),
        corpus=[str(i) for i in range(len(documents))],
        output_format="triplet",
        verbose=False,
        **settings,
    )
    out = [[] for _ in queries]
    for query, negative in zip(found["query"], found["negative"], strict=True):
        out[int(query)].append(int(negative))
    return out


@pytest.mark.installed
@pytest.mark.parametrize(
    ("rules", "settings"),
    [
        ((), {}),
        ((PercentOfPositive(0.9),), {"relative_margin": 0.1}),
        ((MarginToMean(-0.05),), {"absolute_margin": 0.05}),
        ((Below(0.3),), {"max_score": 0.3}),
        (
            (PercentOfPositive(0.95), Below(0.4), Above(-0.2)),
            {"relative_margin": 0.05, "max_score": 0.4, "min_score": -0.2},
        ),
    ],
)
def test_sentence_transformers_mines_the_same(rules, settings):
    rng = np.random.default_rng(3)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    documents = unit(rng.normal(size=(80, 8)))
    right = rng.permutation(80)[:40]
    queries = unit(documents[right] + 0.9 * rng.normal(size=(40, 8)))
    score = queries @ documents.T
    positive = score[np.arange(40), right][:, None].copy()
    score[np.arange(40), right] = -np.inf
    order = np.argsort(-score, axis=1, kind="stable")[:, :60]
    kept = chain(rules, View(np.take_along_axis(score, order, 1), positive, np.ones(order.shape, bool))).kept
    ours = [o[k][:5].tolist() for o, k in zip(order, kept, strict=True)]
    assert ours == theirs(queries, documents, right, num_negatives=5, range_max=60, **settings)
    assert sum(map(len, ours)) > 100
