"""Whose turn it is: shares that change, sources that end, sources that hold; equal to a replay from anywhere."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from omni2vec.data.turns import Blocks, Ending, Held, Turns, deal, schedule

INF = math.inf


def _replayed(turns: Turns, count: int) -> list[tuple[int, int]]:
    """One at a time, counting; fails where `sources` counted otherwise."""
    had: Counter[int] = Counter()
    out = []
    for j in range(count):
        ((source, before),) = turns.sources(j, 1)
        assert before == had[source]
        had[source] += 1
        out.append((source, before))
        assert turns.had(j + 1) == [had[s] for s in range(len(turns.had(0)))]
    return out


def _ramp(block: int) -> tuple[float, ...]:
    return 1 - block / 20, block / 20, 0.3


CASES = {
    "cycles": lambda: schedule((1, 2, 0.5), 3),
    "ramp": lambda: Blocks(_ramp, 11, (INF, INF, INF), 3),
    "ending": lambda: Ending((2, 4, 1), (INF, 40, 3), 3),
    "ends": lambda: Blocks(lambda b: (1, 2, 0.5), 7, (INF, 40, 3), 3),
    "held": lambda: Held(schedule((1, 2, 0.5), 3), 5),
    "held ramp": lambda: Held(Blocks(_ramp, 4, (INF, INF, INF), 3), 5),
}


@pytest.mark.parametrize("name", CASES)
def test_a_seek_into_the_turns_equals_their_replay(name: str) -> None:
    replayed = _replayed(CASES[name](), 150)
    for start, count in ((0, 150), (1, 13), (44, 66), (149, 1)):
        assert CASES[name]().sources(start, count) == replayed[start : start + count]


def test_shares_that_move_are_met_to_one_turn_at_any_block() -> None:
    turns, owed = Blocks(_ramp, 11, (INF, INF, INF), 0), np.zeros(3)
    for block in range(20):
        shares = np.array(_ramp(block))
        owed += 11 * shares / shares.sum()
        assert np.abs(turns.had(11 * (block + 1)) - owed).max() < 1.0 + 1e-9


def test_small_shares_are_not_rounded_away() -> None:
    turns = Blocks(lambda b: (1.0, 0.004), 10, (INF, INF), 0)
    assert turns.had(10_000)[1] == pytest.approx(10_000 * 0.004 / 1.004, abs=1)


def test_a_source_ends_when_it_had_its_share_and_the_others_go_on_by_theirs() -> None:
    turns = Blocks(lambda b: (1, 2, 1), 16, (INF, 40, INF), 0)
    assert turns.had(16 * 5) == [20, 40, 20]
    assert turns.had(16 * 15) == [100, 40, 100]
    assert {s for s, _ in turns.sources(16 * 5, 200)} == {0, 2}


def test_a_source_keeps_its_pace_until_it_ends() -> None:
    turns = Ending((1, 5, 1), (INF, 25, 7), 0)
    ends = max(j for j, (s, _) in enumerate(turns.sources(0, 400)) if s == 1)
    assert 29 <= ends < 35
    for start in range(0, 28, 7):
        assert Counter(s for s, _ in turns.sources(start, 7)) == {0: 1, 1: 5, 2: 1}
    later = Counter(s for s, _ in turns.sources(35, 4))
    assert later == {0: 2, 2: 2}
    assert turns.had(400) == [368, 25, 7]
    far = 10**12
    assert turns.sources(far, 1) == [(0, far - 32)]


def test_sources_that_all_end_say_so() -> None:
    turns = Ending((2, 4, 1), (30, 7, 5), 0)
    assert turns.total == 42
    assert Counter(s for s, _ in turns.sources(0, 42)) == {0: 30, 1: 7, 2: 5}
    with pytest.raises(ValueError, match="every source has ended"):
        turns.sources(42, 1)


def test_all_sources_give_all_they_have_before_the_end_is_said() -> None:
    turns = Blocks(lambda b: (1, 2, 0.5), 7, (30, 7, 5), 0)
    assert turns.total == 42
    assert Counter(s for s, _ in turns.sources(0, 42)) == {0: 30, 1: 7, 2: 5}
    with pytest.raises(ValueError, match="every source has ended"):
        turns.sources(40, 3)


def test_blocks_are_dealt_anew_from_where_their_shares_have_changed() -> None:
    told: list[tuple[float, ...]] = [(1, 1)]
    turns = Blocks(lambda b: told[min(b, len(told) - 1)], 10, (INF, INF), 0)
    before = turns.sources(0, 30)
    told.append((1, 9))
    turns.forget(1)
    after = turns.sources(0, 30)
    assert after[:10] == before[:10]
    assert turns.had(20) == [6, 14]


def test_a_held_source_fills_its_unit_alone() -> None:
    turns = Held(schedule((1, 3), 0), 6)
    for unit in range(20):
        assert len({s for s, _ in turns.sources(unit * 6, 6)}) == 1
    assert turns.had(24) == [6, 18]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_dealt_and_what_is_owed_add_up_to_what_was_due(seed: int) -> None:
    chance = np.random.default_rng(seed)
    shares, length = chance.random(6) * (chance.random(6) > 0.2), int(chance.integers(1, 60))
    shares[0] += 0.1
    room = np.where(chance.random(6) > 0.5, INF, chance.integers(0, 12, 6).astype(float))
    counts, owed = deal(shares, length, room, np.zeros(6))
    assert (counts <= room).all()
    assert (counts[shares == 0] == 0).all()
    open_ = (shares > 0) & (room > 0)
    assert counts.sum() == min(length, room[open_].sum())
    assert (np.abs(owed) < 1).all()
