"""Exact top k by tiles against a stable sort of the whole float64 score matrix, to the bit."""

import numpy as np
import pytest
import torch
from omni2vec.eval.matrix import Mapped, write
from omni2vec.eval.nearest import nearest
from omni2vec.eval.search import search
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def vectors(count: int, width: int = 16, seed: int = 0, levels: int = 0) -> Tensor:
    """Unit vectors; with `levels`, few distinct ones, so that scores tie."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(count, width, generator=generator)
    if levels:
        out = out[torch.randint(0, levels, (count,), generator=generator)]
    return torch.nn.functional.normalize(out, dim=1)


def reference(query: Tensor, docs: Tensor, k: int, gone: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """By a stable sort of all scores, in float64 rounded to float32, which hides the order of summation."""
    scores = (query.double()[:, None] * docs.double()).sum(-1).float()
    if gone is not None:
        scores = scores.masked_fill(gone, -torch.inf)
    best, order = scores.sort(dim=1, descending=True, stable=True)
    order = torch.where(best == -torch.inf, -1, order)
    return order[:, :k], best.masked_fill(best == -torch.inf, torch.nan)[:, :k]


def same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(nan=9.0), b.nan_to_num(nan=9.0)) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("levels", [0, 5, 400])
@pytest.mark.parametrize("k", [1, 10, 120])
def test_top_k_equals_a_stable_sort_of_all_scores(levels, k):
    query, docs = vectors(70, seed=1), vectors(2000, seed=2, levels=levels)
    assert same(nearest(query, docs, k, columns=96), reference(query, docs, k))


@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (7, 64), (64, 333), (1000, 100_000)])
def test_tiles_of_any_size_give_equal_bits(rows, columns):
    query, docs = vectors(20, 48, seed=1), vectors(3000, 48, seed=2, levels=700)
    docs[1000:1500] = docs[:500]  # the same again, elsewhere in a tile
    assert same(nearest(query, docs, 20, rows=rows, columns=columns), nearest(query, docs, 20))


def test_scores_that_differ_in_the_last_bits_are_ordered_as_float64_orders_them():
    generator = torch.Generator().manual_seed(0)
    docs = vectors(1, 256) + 1e-6 * torch.randn(3000, 256, generator=generator)  # less than float32 sums resolve
    query = vectors(5, 256, seed=3)
    assert same(nearest(query, docs, 30), reference(query, docs, 30))
    plain = (query @ docs.T).topk(30).indices
    assert not torch.equal(plain, reference(query, docs, 30)[0])  # what a float32 search would say


def test_documents_in_ascending_order_of_score_fill_no_shortlist_over():
    docs = torch.nn.functional.normalize(torch.stack([torch.linspace(-1, 1, 5000), torch.ones(5000)], 1), dim=1)
    query = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert same(nearest(query, docs, 40), reference(query, docs, 40))


def test_of_equal_documents_the_earlier_ones_are_given_however_many_there_are():
    query, docs = vectors(3), vectors(1).expand(4000, -1)
    assert nearest(query, docs, 5)[0].tolist() == [[0, 1, 2, 3, 4]] * 3


def test_it_agrees_with_the_search_of_evaluation():
    query, docs = vectors(40, seed=1), vectors(900, seed=2, levels=300)
    found, (index, scores) = search(query, docs, 12), nearest(query, docs, 12)
    assert (found.top == index.numpy()).all() and (found.scores == scores.numpy()).all()


@pytest.mark.parametrize("form", ["mask", "pairs"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_hidden_documents_are_not_ranked_and_a_short_list_ends_in_gaps(share, form):
    query, docs = vectors(30, seed=1), vectors(1500, seed=2, levels=900)
    gone = torch.rand(30, 1500, generator=torch.Generator().manual_seed(3)) < share

    def hidden(rows: slice, columns: slice) -> Tensor:
        return gone[rows, columns] if form == "mask" else gone[rows, columns].nonzero()

    found = nearest(query, docs, 12, hidden=hidden, rows=11, columns=160)
    assert same(found, reference(query, docs, 12, gone))


def test_nothing_hidden_may_be_said_by_none():
    query, docs = vectors(5, seed=1), vectors(90, seed=2)
    assert same(nearest(query, docs, 4, hidden=lambda rows, columns: None), nearest(query, docs, 4))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_beyond_a_small_pool_there_is_nothing(count):
    index, scores = nearest(vectors(3), vectors(count, seed=1), 6)
    assert index.shape == scores.shape == (3, 6)
    assert (index[:, count:] == -1).all() and scores[:, count:].isnan().all()
    assert (index[:, :count] >= 0).all() and not scores[:, :count].isnan().any()


def test_no_queries_give_no_rows():
    assert nearest(vectors(0), vectors(4), 3)[0].shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_file_of_rows_is_searched_as_its_rows_in_memory_are(dtype, tmp_path):
    docs = vectors(3000, seed=2).to(dtype)
    file = Mapped(write(tmp_path / "docs.safetensors", docs.split(700), (3000, 16), dtype))
    query = vectors(20, seed=1)
    assert same(nearest(query, file, 9), nearest(query, docs, 9))
    assert same(nearest(query, file, 9), reference(query, docs.float(), 9))


def test_a_lower_precision_of_products_is_not_used_and_is_put_back():
    query, docs = vectors(64, 256, seed=1), vectors(2000, 256, seed=2)
    torch.set_float32_matmul_precision("medium")
    try:
        assert same(nearest(query, docs, 9), reference(query, docs, 9))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("side", ["query", "docs"])
def test_vectors_that_are_not_finite_are_refused_by_row(side):
    pair = {"query": vectors(3), "docs": vectors(3)}
    pair[side][1, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{side}: row 1 of 3 holds NaN or infinity"):
        nearest(pair["query"], pair["docs"], 2)


def test_sides_of_different_width_and_no_k_are_refused():
    with pytest.raises(ValueError, match=r"query \(2, 8\) and docs \(2, 4\) with k=1"):
        nearest(vectors(2, 8), vectors(2, 4), 1)
    with pytest.raises(ValueError, match="k of 1 or more"):
        nearest(vectors(2), vectors(2), 0)


def test_vectors_too_long_for_float32_scores_are_refused():
    with pytest.raises(ValueError, match="scale the vectors"):
        nearest(vectors(2) * 1e30, vectors(2) * 1e30, 1)


def test_no_tensor_grows_with_the_documents():
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                largest = max(largest, tensor.untyped_storage().nbytes() if isinstance(tensor, Tensor) else 0)
            return out

    seen = []
    for count in (10_000, 30_000):
        query, docs = vectors(20, 2), vectors(count, 2, seed=1)
        docs = np_rows(docs)
        largest = 0
        with Watch():
            nearest(query, docs, 5, rows=10, columns=256)
        seen.append(largest)
    assert seen[0] == seen[1]


class np_rows:  # noqa: N801
    """Rows that are copied out, so that the matrix itself is not seen as a tensor of the search."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.shape = rows.numpy(), tuple(rows.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at):
        return torch.from_numpy(np.array(self.rows[at]))


def test_a_file_that_is_cut_off_or_holds_something_else_is_told(tmp_path):
    path = write(tmp_path / "v.safetensors", [vectors(100)], (100, 16), metadata={"by": "a test"})
    with pytest.raises(ValueError, match=r"expected floats 'other' of shape \(N, D\); it holds"):
        Mapped(path, "other")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="write it again"):
        Mapped(path)
    path.write_bytes(b"no such header at all")
    with pytest.raises(ValueError, match="no safetensors file"):
        Mapped(path)


def test_what_is_written_in_blocks_is_a_plain_safetensors_file(tmp_path):
    from safetensors.torch import load_file

    rows = vectors(100)
    assert torch.equal(load_file(write(tmp_path / "v.safetensors", rows.split(7), (100, 16)))["vectors"], rows)
    with pytest.raises(ValueError, match="the blocks have 93 rows; expected 100"):
        write(tmp_path / "w.safetensors", list(rows.split(31))[:3], (100, 16))
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]


def test_vectors_of_any_length_are_ranked_down_to_where_scores_vanish():
    query, docs = vectors(10, seed=1), vectors(600, seed=2)
    for scale in (1e-22, 1e-19, 1e15):
        assert same(nearest(query * scale, docs * scale, 9), reference(query * scale, docs * scale, 9))


def test_double_precision_is_rounded_to_float32_first():
    query, docs = vectors(10, seed=1).double() * (1 + 1e-9), vectors(600, seed=2).double() * (1 - 1e-9)
    assert same(nearest(query, docs, 9), nearest(query.float(), docs.float(), 9))
