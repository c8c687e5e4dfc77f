"""Mixtures as a loader deals them: by size, specialised, of unlike sub-batches, scheduled, ending, adaptive."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Adaptive, BySize, Feed, Mix, Specialised
from omni2vec.data.ranks import Ranks
from omni2vec.data.schedules import Phases, Ramp
from omni2vec.data.types import DataError, Limits

from .test_loader import Letters, Packed, Toy

A, B, C = Toy("a", 1000), Toy("b", 100), Toy("c", 10)


def loader(feeds: Sequence[Feed], mix: Mix | None = None, **settings: object) -> Loader[Packed]:
    given = {"batch": 8, "sub_batch": 4, "seed": 0, "budget": 1 << 20, **settings}
    rows = [f.source.open(lambda s: None) for f in feeds]
    return Loader(rows, feeds, Letters(), Limits(), mix=mix, **given)


def counts(made: Loader[Packed], steps: int) -> list[Counter[int]]:
    return [Counter(a.source for a in made.order.rows_of(t)) for t in range(steps)]


@pytest.mark.parametrize(
    ("mix", "shares"),
    [
        (BySize(1.0), (1000, 100, 10)),
        (BySize(0.5), (1000**0.5, 10, 10**0.5)),
        (BySize(0.0), (1, 1, 1)),
        (BySize(1.0, cap=100), (100, 100, 10)),
    ],
)
def test_shares_by_size(mix: Mix, shares: tuple[float, ...]) -> None:
    made = loader([Feed(A), Feed(B), Feed(C)], mix, sub_batch=1)
    drawn = made.order.drawn(2000)
    assert [n / 16_000 for n in drawn] == pytest.approx([s / sum(shares) for s in shares], abs=2e-3)


def test_size_goes_with_the_weights() -> None:
    made = loader([Feed(A, 1.0), Feed(B, 10.0)], BySize(1.0))
    assert made.order.drawn(100) == (400, 400)


@pytest.mark.parametrize("steps", [1, 5])
def test_specialised_steps_are_of_one_source_each(steps: int) -> None:
    seen = counts(loader([Feed(A, 3.0), Feed(B)], Specialised(steps)), 40)
    assert all(len(c) == 1 and sum(c.values()) == 8 for c in seen)
    units = [seen[i : i + steps] for i in range(0, 40, steps)]
    assert all(len({tuple(c) for c in unit}) == 1 for unit in units)
    assert Counter(s for c in seen for s in c) == {0: 30, 1: 10}


def test_a_source_may_have_sub_batches_of_its_own_size() -> None:
    seen = counts(loader([Feed(A), Feed(B, sub_batch=12)], sub_batch=8), 20)
    assert set(map(tuple, (c.items() for c in seen))) == {((0, 8),), ((1, 12),)}


def test_a_weight_follows_the_stage() -> None:
    made = loader([Feed(A, Phases(((0.0, 1.0), (0.5, 0.0)))), Feed(B, Ramp(0.0, 1.0))], steps=200, sub_batch=1)
    half, end = made.order.drawn(100), made.order.drawn(200)
    assert end[0] == half[0]
    assert half[0] == pytest.approx(sum(8 / (1 + t / 200) for t in range(100)), abs=8)
    assert sum(end) == 1600


def test_weights_that_sum_to_nothing_somewhere_on_the_way_are_refused_at_the_start() -> None:
    feeds = [Feed(A, Ramp(1, 0, until=0.4)), Feed(B, Ramp(0, 1, begin=0.6))]
    with pytest.raises(ValueError, match=r"sources a, b at progress 0\.4.*one positive"):
        loader(feeds, steps=100)


def test_a_source_ends_after_its_epochs_and_none_of_its_rows_is_lost() -> None:
    made = loader([Feed(A), Feed(B, 5.0, epochs=1), Feed(C, epochs=2.5)])
    rows = Counter((a.source, a.row) for t in range(200) for a in made.order.rows_of(t))
    assert {n for (s, _), n in rows.items() if s == 1} == {1}
    assert sum(n for (s, _), n in rows.items() if s == 2) == 28  # 25 rows, up to a whole sub-batch
    assert sum(s == 1 for s, _ in rows) == 100


def test_a_stage_that_is_longer_than_its_sources_is_refused_with_what_they_have() -> None:
    with pytest.raises(DataError, match=r"20 steps asked, but all sources have ended after 15.*b 1 x 100 rows.*epochs"):
        loader([Feed(B, epochs=1), Feed(C, epochs=2)], stop=20)


def test_a_stage_whose_shares_lead_to_sources_that_have_ended_is_refused_at_its_start() -> None:
    feeds = [Feed(A, Phases(((0.0, 1.0), (0.5, 0.0)))), Feed(B, Phases(((0.0, 0.0), (0.5, 1.0))), epochs=1)]
    with pytest.raises(ValueError, match=r"every source that has a share in block \d+ has ended"):
        loader(feeds, steps=200, stop=200)


def test_epochs_are_counted_in_whole_sub_batches_without_rounding_up_a_rounding() -> None:
    made = loader([Feed(B, epochs=1.1)], batch=10, sub_batch=10)
    assert made.order.steps == 11
    assert loader([Feed(B)]).order.steps == math.inf


def test_a_source_that_ends_gives_all_its_batches() -> None:
    with loader([Feed(B, epochs=1)], batch=10, sub_batch=10) as made:
        assert sum(len(plan.keys) for plan, chunks in made if list(chunks)) == 100


def test_a_source_smaller_than_the_turn_that_it_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="'c': a turn of 100 steps is 800 rows, more than the 10 of epochs=1"):
        loader([Feed(A), Feed(C, epochs=1)], Specialised(100))


def test_batches_smaller_than_the_ranks_are_refused_at_the_start() -> None:
    feeds, eight = [Feed(A), Feed(B, sub_batch=2)], Ranks(0, 8, lambda m: [m] * 8)
    with pytest.raises(ValueError, match="1 sub-batches of 2 rows, fewer rows than the 8 ranks"):
        loader(feeds, sub_batch=8, stop=4, ranks=eight)


def test_a_need_without_measure_ends_nothing() -> None:
    shares = Adaptive().shares((1.0, 1.0, 0.0), {0: 1e6, 1: 0.5, 2: 1e9})
    assert shares[0] > shares[1] > 0 == shares[2]
    assert Adaptive(floor=0.25).shares((1.0, 1e6), {0: 1.0, 1: 1.0}) == pytest.approx(
        (1074, (1 << 30) - 1074), rel=1e-3
    )


def test_a_mix_that_adapts_shifts_to_what_has_learned_least_and_leaves_each_its_floor() -> None:
    mix = Adaptive(strength=3.0, floor=0.2)
    shares = mix.shares((1.0, 1.0, 2.0), {0: 1.0, 1: 0.5, 2: 0.75})
    assert sum(shares) == pytest.approx(1 << 30, abs=3)
    part = [s / sum(shares) for s in shares]
    raised = [math.exp(3 * 0.25), math.exp(-3 * 0.25), 2.0]
    wanted = [0.2 * b + 0.8 * r / sum(raised) for b, r in zip((0.25, 0.25, 0.5), raised, strict=True)]
    assert part == pytest.approx(wanted, abs=1e-4)
    assert mix.shares((1.0, 1.0), {0: 0.7}) == (1 << 29, 1 << 29)  # what was not seen is as the others
    assert mix.shares((1.0, 0.0), {0: 0.7, 1: 3.0})[1] == 0
    assert Adaptive(floor=1.0).shares((1.0, 3.0), {0: 9.0, 1: 0.0}) == (1 << 28, 3 << 28)


def test_what_was_told_deals_the_next_block_and_leaves_those_before() -> None:
    made = loader([Feed(A), Feed(B)], Adaptive(every=4), sub_batch=1, steps=100)
    before = [made.order.rows_of(t) for t in range(4)]
    made.tell((1, 7))
    assert [made.order.rows_of(t) for t in range(4)] == before
    assert sum(counts(made, 8)[4:], Counter()) == Counter({1: 28, 0: 4})
    again = loader([Feed(A), Feed(B)], Adaptive(every=4), sub_batch=1, steps=100, told=[(1, 7)])
    assert [again.order.rows_of(t) for t in range(8)] == [made.order.rows_of(t) for t in range(8)]


def test_a_batch_whose_shares_were_not_told_is_never_begun() -> None:
    made = loader([Feed(A), Feed(B)], Adaptive(every=2), stop=10)
    with pytest.raises(RuntimeError, match="batch 2 begun before its shares were told"):
        for _, chunks in made:
            list(chunks)


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        (lambda: BySize(-1), "alpha=-1"),
        (lambda: Specialised(0), "steps of 1 or more"),
        (lambda: Specialised(2, Specialised(1)), "holds no source"),
        (lambda: Adaptive(every=1), "every of 2"),
        (lambda: Adaptive(of=Adaptive()), "adapts nothing"),
        (lambda: Adaptive(floor=1.5), "floor"),
        (lambda: loader([Feed(A), Feed(B)], Adaptive(every=3, of=Specialised(2))), "multiple of the 2 steps"),
        (lambda: loader([Feed(A, Ramp(1, 2)), Feed(B)], Adaptive()), "one of"),
        (lambda: loader([Feed(A, Phases(((0.0, 1.0), (0.5, 9.0), (0.502, 1.0)))), Feed(B)], steps=99), "hundredths"),
        (lambda: Feed(A, sub_batch=1.5), "sub_batch=1.5; expected a whole number"),  # type: ignore[arg-type]
        (lambda: Feed(A, negatives=0.5), "negatives=0.5; expected a whole number or a schedule"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_mix_is_refused(mix: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mix()  # type: ignore[operator]
