"""The plan of one update: every item once, no chunk over budget, few chunks, the same on every rank."""

from __future__ import annotations

import random

import pytest
from omni2vec.data.chunks import Chunk, plan
from omni2vec.data.types import Cost


def _costs(seed: int, count: int, budget: int) -> list[Cost]:
    """Texts, pictures and clips, as in a mixed batch; seeds differ in how mixed."""
    draw = random.Random(seed)
    kinds = [((), 16, 128), (("image",), 64, 1024), (("video",), 512, 3000)][: 1 + seed % 3]
    costs = []
    for _ in range(count):
        towers, low, high = draw.choice(kinds)
        costs.append(Cost(min(draw.randint(low, high), budget), towers=towers))
    return costs


CASES = [
    (seed, draw.choice([1, 5, 40, 300]), draw.choice([3000, 4096, 16384]), draw.choice([1, 2, 3, 8]))
    for seed in range(60)
    for draw in [random.Random(1000 + seed)]
]


@pytest.mark.parametrize(("seed", "count", "budget", "world"), CASES)
def test_a_plan_keeps_its_properties(seed: int, count: int, budget: int, world: int) -> None:
    costs = _costs(seed, max(count, world), budget)
    ranks = plan(costs, budget, world)
    chunks = [c for rank in ranks for c in rank]
    assert sorted(e for c in chunks for e in c.entries) == list(range(len(costs)))
    assert all(c.tokens == sum(costs[e].tokens for e in c.entries) <= budget for c in chunks)
    assert len(ranks) == world
    assert len({len(rank) for rank in ranks}) == 1
    for row in zip(*ranks, strict=True):
        assert len({c.towers for c in row}) == 1
        for c in row:
            own = {t for e in c.entries for t in costs[e].towers}
            assert own | set(c.dummies) - {"text"} == set(c.towers)
            assert not own & set(c.dummies)
            assert c.entries or c.dummies
    assert plan(costs, budget, world) == ranks


def test_chunks_are_few_and_full() -> None:
    for seed in range(6):
        for budget in (4096, 16384):
            costs = _costs(seed, 400, budget)
            (chunks,) = plan(costs, budget)
            total = sum(c.tokens for c in costs)
            fewest = max(-(-total // budget), sum(c.tokens > budget / 2 for c in costs))
            assert len(chunks) <= fewest * 1.05 + 1
            if seed % 3 < 2:  # many short items: nothing keeps the chunks from being even
                assert max(c.tokens for c in chunks) - min(c.tokens for c in chunks) < 0.1 * budget


def test_items_of_a_chunk_are_sorted_by_length() -> None:
    costs = _costs(2, 200, 4096)
    for chunk in plan(costs, 4096)[0]:
        lengths = [costs[e].tokens for e in chunk.entries]
        assert lengths == sorted(lengths, reverse=True)


def test_ranks_get_about_as_many_tokens_in_each_of_their_chunks() -> None:
    ranks = plan(_costs(2, 800, 4096), 4096, 4)
    assert max(max(c.tokens for c in row) / min(c.tokens for c in row) for row in zip(*ranks, strict=True)) < 1.25
    sums = [sum(c.tokens for c in rank) for rank in ranks]
    assert max(sums) / min(sums) < 1.05


def test_one_rank_runs_no_dummy_and_only_the_towers_that_a_chunk_has() -> None:
    costs = [Cost(90), Cost(60, towers=("video", "image")), Cost(30)]
    assert plan(costs, 100) == [(Chunk((1, 2), 90, ("image", "video")), Chunk((0,), 90))]


def test_a_rank_without_a_picture_beside_one_with_gets_a_dummy() -> None:
    first, second = plan([Cost(80, towers=("image",)), Cost(90)], 100, world=2)
    assert first == (Chunk((0,), 80, ("image",)),)
    assert second == (Chunk((1,), 90, ("image",), ("image",)),)


def test_any_batch_of_as_many_rows_as_ranks_can_be_dealt() -> None:
    ranks = plan([Cost(90)] * 5, 100, world=2)  # five chunks, of which none can be cut: one rank runs an empty one
    assert [len(r) for r in ranks] == [3, 3]
    assert [c for r in ranks for c in r if not c.entries] == [Chunk((), 0, (), ("text",))]


def test_sixty_thousand_items_are_planned_in_seconds() -> None:
    costs = _costs(2, 60_000, 16384)
    (chunks,) = plan(costs, 16384)
    assert len(chunks) < sum(c.tokens for c in costs) / 16384 * 1.02 + 1


def test_an_item_longer_than_the_budget_is_named_with_the_way_out() -> None:
    with pytest.raises(
        ValueError,
        match=r"stage 'refine': chunk_tokens=512 is smaller than the longest item "
        r"\(1,284 tokens, key mmeb/0003/17\); raise chunk_tokens or lower max_tokens",
    ):
        plan([Cost(5), Cost(1284)], 512, keys=["a", "mmeb/0003/17"], stage="refine")


def test_too_few_items_for_the_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="1 items for 2 ranks"):
        plan([Cost(5)], 512, world=2)
