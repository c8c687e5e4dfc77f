"""Exact search against a stable sort of the whole score matrix."""

import numpy as np
import pytest
import torch
from omni2vec.eval import search as module
from omni2vec.eval.search import search, search_local
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def vectors(count: int, width: int = 8, seed: int = 0, levels: int = 0) -> Tensor:
    """Unit vectors; with `levels`, few distinct ones, so that scores tie."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(count, width, generator=generator)
    if levels:
        out = out[torch.randint(0, levels, (count,), generator=generator) % count]
    return torch.nn.functional.normalize(out, dim=1)


def reference(query: Tensor, docs: Tensor) -> np.ndarray:
    """Candidate indices of every query, best first, equal scores in candidate order."""
    scores = (query.double() @ docs.double().T).float()
    return torch.argsort(scores, dim=1, descending=True, stable=True).numpy()


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(module, "COLUMNS", 11)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("levels", [0, 5])
def test_top_k_equals_a_stable_sort_across_tiles(levels: int) -> None:
    query, docs = vectors(30, seed=1), vectors(50, seed=2, levels=levels)
    found = search(query, docs, 6)
    assert (found.top == reference(query, docs)[:, :6]).all()
    expected = np.take_along_axis((query.double() @ docs.double().T).float().numpy(), found.top, 1)
    assert (found.scores == expected).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("levels", [0, 5])
def test_ranks_of_right_answers_equal_their_places_in_the_sort(levels: int) -> None:
    query, docs = vectors(30, seed=1), vectors(50, seed=2, levels=levels)
    right = [[q, (3 * q + 1) % 50, 49][: 1 + q % 3] for q in range(30)]
    order = reference(query, docs)
    found = search(query, docs, 6, right)
    assert found.right_ranks == tuple(
        tuple(int(np.flatnonzero(order[q] == a)[0]) + 1 for a in answers) for q, answers in enumerate(right)
    )


def test_of_equal_candidates_the_earlier_one_wins() -> None:
    docs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    found = search(torch.tensor([[1.0, 0.0]]), docs, 3, [[3, 2, 1]])
    assert found.top.tolist() == [[1, 2, 3]]
    assert found.right_ranks == ((3, 2, 1),)


def test_zero_and_negative_zero_are_equal() -> None:
    docs = torch.tensor([[-0.0, -0.0], [0.0, 0.0]])
    assert search(torch.tensor([[1.0, 0.0]]), docs, 2).top.tolist() == [[0, 1]]


def test_a_query_does_not_rank_its_own_item() -> None:
    docs = vectors(5)
    found = search(docs, docs, 9, [[(q + 1) % 5] for q in range(5)], own=range(5))
    assert all(q not in row for q, row in enumerate(found.top.tolist()))
    assert (found.top[:, 4] == -1).all() and np.isnan(found.scores[:, 4]).all()
    assert all(1 <= r <= 4 for (r,) in found.right_ranks)


def test_a_small_pool_gives_all_it_has() -> None:
    assert search(vectors(3), vectors(4, seed=1), 10).top.shape == (3, 4)


def test_no_queries_give_no_rows() -> None:
    assert search(vectors(0), vectors(4), 3).top.shape == (0, 3)


def test_a_local_pool_ranks_its_own_candidates_only() -> None:
    query, docs = vectors(4, seed=3), vectors(9, seed=4)
    pools = [[0, 1, 2], [8, 3], [5, 4, 6, 7], [2, 8]]
    found = search_local(query, docs, 3, pools, [[2], [3, 8], [4], [8]])
    for q, pool in enumerate(pools):
        by_score = sorted(pool, key=lambda c: -float(docs[c].double() @ query[q].double()))  # sorted is stable
        padded = [*by_score, -1, -1, -1][:3]
        assert found.top[q].tolist() == padded
    assert found.right_ranks[1] in {(1, 2), (2, 1)}


def test_local_ties_follow_pool_order() -> None:
    docs = torch.ones(4, 2)
    assert search_local(torch.ones(1, 2), docs, 4, [[2, 0, 3, 1]]).top.tolist() == [[2, 0, 3, 1]]


@pytest.mark.parametrize("side", ["query", "docs"])
def test_vectors_that_are_not_finite_are_refused_by_row(side: str) -> None:
    pair = {"query": vectors(3), "docs": vectors(3)}
    pair[side] = pair[side].clone()
    pair[side][1, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{side}: 1 of 3 vectors hold NaN or infinity, the first is row 1"):
        search(pair["query"], pair["docs"], 2)


def test_sides_of_different_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"query \(2, 8\) and docs \(2, 4\)"):
        search(vectors(2), vectors(2, 4), 1)


@pytest.mark.usefixtures("small_tiles")
def test_no_tensor_is_larger_than_a_tile() -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                largest = max(largest, tensor.numel() if isinstance(tensor, Tensor) else 0)
            return out

    query, docs = vectors(200, 2), vectors(200, 2, seed=1)
    with Watch():
        search(query, docs, 5, [[q] for q in range(200)])
    assert largest <= 400  # the inputs themselves; the whole matrix would be 40,000


@pytest.mark.usefixtures("small_tiles")
def test_hidden_candidates_are_not_ranked_and_a_short_list_ends_in_gaps() -> None:
    query, docs = vectors(30, seed=1), vectors(50, seed=2)
    gone = torch.rand(30, 50, generator=torch.Generator().manual_seed(3)) < 0.9
    found = search(query, docs, 12, hidden=lambda rows, columns: gone[rows, columns])
    for q, order in enumerate(reference(query, docs)):
        left = [d for d in order if not gone[q, d]][:12]
        assert found.top[q].tolist() == left + [-1] * (12 - len(left))
