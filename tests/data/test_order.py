"""Which rows are batch t: whole epochs, no state, seeks equal to iteration."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from omni2vec.data.order import Address, Order

SIZES, WEIGHTS = (10, 7, 100_000), (1, 2, 0.5)
MIXED = Order.of(SIZES, WEIGHTS, batch=8, sub_batch=4, seed=3)


def _draws(order: Order, steps: int) -> dict[int, list[Address]]:
    found = defaultdict(list)
    for step in range(steps):
        for address in order.rows_of(step):
            found[address.source].append(address)
    return found


def test_every_epoch_of_a_source_holds_each_row_once() -> None:
    for source, draws in _draws(MIXED, 100).items():
        size = SIZES[source]
        assert [d.draw for d in draws] == list(range(len(draws)))
        for epoch in range(len(draws) // size):
            rows = [d.row for d in draws[epoch * size : (epoch + 1) * size]]
            assert sorted(rows) == list(range(size))


def test_epochs_of_a_source_have_different_orders_and_so_do_sources_of_one_size() -> None:
    draws = _draws(Order.of((50, 50), (1, 1), 10, 5, 0), 20)
    orders = [tuple(d.row for d in draws[s][e * 50 : (e + 1) * 50]) for s in (0, 1) for e in (0, 1)]
    assert len(set(orders)) == 4


def test_a_batch_is_a_function_of_its_step_alone() -> None:
    forward = [MIXED.rows_of(t) for t in range(30)]
    backward = [Order.of(SIZES, WEIGHTS, 8, 4, 3).rows_of(t) for t in reversed(range(30))]
    assert forward == backward[::-1]
    assert forward != [Order.of(SIZES, WEIGHTS, 8, 4, 4).rows_of(t) for t in range(30)]


def test_a_batch_is_made_of_sub_batches_of_one_source_each() -> None:
    for step in range(30):
        rows = MIXED.rows_of(step)
        assert len(rows) == 8
        assert all(len({a.source for a in rows[i : i + 4]}) == 1 for i in (0, 4))


def test_sub_batches_of_one_row_mix_the_sources_by_their_weights() -> None:
    order = Order.of((1000, 1000), (3, 1), batch=8, sub_batch=1, seed=0)
    assert all(Counter(a.source for a in order.rows_of(t)) == {0: 6, 1: 2} for t in range(20))


def test_a_source_smaller_than_its_sub_batch_is_gone_through_several_times() -> None:
    rows = [a.row for a in Order.of((3,), (1,), 9, 9, 0).rows_of(0)]
    assert Counter(rows) == {0: 3, 1: 3, 2: 3}


def test_a_seek_far_into_a_run_gives_the_draws_that_belong_there() -> None:
    step = 7 * 10**12  # two sub-batches a step: whole cycles of 7
    first = MIXED.rows_of(step)[0]
    assert first.draw == 2 * 10**12 * (2, 4, 1)[first.source] * 4


def test_epochs_counts_how_often_each_source_was_gone_through() -> None:
    draws = _draws(MIXED, 33)
    assert MIXED.epochs(33) == tuple(len(draws[s]) / SIZES[s] for s in range(3))


@pytest.mark.parametrize(
    ("sizes", "weights", "batch", "sub_batch", "words"),
    [
        ((5,), (1,), 10, 4, "batch=10 is not a whole number of sub-batches of 4"),
        ((5,), (1,), 0, 1, "batch=0"),
        ((5, 5), (1,), 4, 4, "2 sources and 1 weights"),
        ((5, 0), (1, 1), 4, 4, "source 1 has no rows"),
    ],
)
def test_a_wrong_setting_is_refused(
    sizes: tuple[int, ...], weights: tuple[float, ...], batch: int, sub_batch: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Order.of(sizes, weights, batch, sub_batch, 0)
