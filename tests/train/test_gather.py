"""Vectors to all ranks and gradients back to their owners, for uneven counts and ranks that hold nothing."""

from __future__ import annotations

import pytest
import torch
from omni2vec.train.gather import Group, bounds, bring, gather_vectors

from .threaded import on_ranks

DEALT = {
    "one rank": [[0, 1, 2, 3, 4]],
    "uneven": [[3, 0, 6, 1], [5], [2, 4]],
    "an empty rank": [[1, 2], [], [0, 3, 4]],
    "nothing but on one": [[], [2, 0, 1], []],
    "fewer entries than ranks": [[0], [], [], []],
    "20 ranks": [list(range(r, 57, 20))[::-1] for r in range(20)],
    "40 ranks, every third empty": [list(range(r - r // 3 - 1, 57, 26)) if r % 3 else [] for r in range(40)],
}


@pytest.mark.parametrize("dealt", DEALT.values(), ids=DEALT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_rank_gets_the_vectors_of_all_entries_in_one_gather(dealt: list[list[int]], dtype: torch.dtype) -> None:
    entries = [torch.tensor(e, dtype=torch.int64) for e in dealt]
    vectors = torch.randn(sum(map(len, dealt)), 3, dtype=dtype)

    def work(group: Group) -> tuple[torch.Tensor, dict[str, int]]:
        return gather_vectors(group, entries, vectors[entries[group.rank]]), dict(group.calls)

    for found, calls in on_ranks(len(dealt), work):
        assert found.dtype == dtype
        assert torch.equal(found, vectors)
        assert calls == {"all_gather": 1}


@pytest.mark.parametrize("dealt", DEALT.values(), ids=DEALT)
@pytest.mark.parametrize("subset", ["all", "some", "none"])
def test_gradients_reach_the_owner_of_their_entry_and_no_one_else(dealt: list[list[int]], subset: str) -> None:
    size, count = len(dealt), sum(map(len, dealt))
    owner = torch.empty(count, dtype=torch.int64)
    for rank, entries in enumerate(dealt):
        owner[torch.tensor(entries, dtype=torch.int64)] = rank
    rows = {"all": torch.arange(count), "some": torch.arange(count)[::2].flip(0), "none": torch.arange(0)}[subset]
    gradient = torch.randn(len(rows), 3, dtype=torch.float64)

    def work(group: Group) -> tuple[torch.Tensor, torch.Tensor, dict[str, int]]:
        first, last = group.share(len(rows))
        return *bring(group, gradient[first:last], rows, owner), dict(group.calls)

    seen = []
    for rank, (entries, found, calls) in enumerate(on_ranks(size, work)):
        mine = owner[rows] == rank
        assert torch.equal(entries, rows[mine])
        assert torch.equal(found, gradient[mine])
        assert calls == ({"all_to_all": 1} if size > 1 else {})
        seen += entries.tolist()
    assert sorted(seen) == sorted(rows.tolist())


def test_one_process_gathers_and_brings_without_a_collective() -> None:
    group, vectors = Group(), torch.randn(3, 2)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(gather_vectors(group, [order], vectors)[order], vectors)
    entries, found = bring(group, vectors, order, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(entries, order)
    assert torch.equal(found, vectors)
    assert not group.calls


def test_rows_that_are_not_the_ranks_own_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="2 vectors for 3 entries"):
        gather_vectors(Group(), [torch.arange(3)], torch.randn(2, 4))
    with pytest.raises(ValueError, match="brings 2 rows; its share of 3 is 3"):
        bring(Group(), torch.randn(2, 4), torch.arange(3), torch.zeros(3, dtype=torch.int64))


def test_shares_are_even_and_leave_no_row_out() -> None:
    for count, size in ((10, 3), (2, 4), (0, 2)):
        found = bounds(count, size)
        assert [i for a, b in found for i in range(a, b)] == list(range(count))
        assert max(b - a for a, b in found) - min(b - a for a, b in found) <= 1
