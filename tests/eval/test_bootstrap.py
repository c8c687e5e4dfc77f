"""Bootstrap intervals against normal theory and against plain resampling."""

import numpy as np
import pytest
from omni2vec.eval import bootstrap
from omni2vec.eval.metrics import spearman


def test_the_interval_of_a_mean_is_that_of_normal_theory() -> None:
    values = np.random.default_rng(0).random(2000)
    low, high = bootstrap.interval(bootstrap.means(values[:, None], 2000)[:, 0])
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (values.mean() - low, high - values.mean()) == pytest.approx((half, half), rel=0.1)


def test_every_draw_has_as_many_queries_as_there_are() -> None:
    blocks = list(bootstrap.counts(13, 100))
    assert sum(len(b) for b in blocks) == 100
    assert all((b.sum(1) == 13).all() for b in blocks)


def test_blocks_do_not_change_the_number_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_CELLS", 30)
    assert [b.shape for b in bootstrap.counts(10, 7)] == [(3, 10), (3, 10), (1, 10)]


def test_the_same_seed_gives_the_same_draws_and_another_gives_others() -> None:
    values = np.arange(20.0)[:, None]
    assert (bootstrap.means(values, 50, 3) == bootstrap.means(values, 50, 3)).all()
    assert (bootstrap.means(values, 50, 3) != bootstrap.means(values, 50, 4)).any()


def test_spearman_under_a_draw_equals_spearman_of_the_drawn_pairs() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=40), rng.integers(0, 5, 40).astype(float)
    drawn = bootstrap.spearmans(a, b, 20)
    counts = np.concatenate(list(bootstrap.counts(40, 20)))
    expected = [spearman(np.repeat(a, c), np.repeat(b, c)) for c in counts]
    assert drawn == pytest.approx(expected)


def test_tasks_are_drawn_independently_of_each_other() -> None:
    assert bootstrap.seed_of("one") != bootstrap.seed_of("two")
    assert bootstrap.seed_of("one", 0) != bootstrap.seed_of("one", 1)
