"""IVF-PQ: how much of the exact list it finds, that its scores are exact, and that what is kept is what is used."""

import dataclasses
import sys

import pytest
import torch
from omni2vec.data.types import DataError
from omni2vec.eval import approximate
from omni2vec.eval.approximate import Approximate, build, opened, recall
from omni2vec.eval.matrix import Mapped, write
from omni2vec.eval.nearest import exact, nearest

faiss = pytest.importorskip("faiss", reason="faiss is not installed: pip install 'omni2vec[mine]'")
HOW = Approximate(lists=32, probes=8, train_rows=2048)


def clustered(count, seed, dim=32):
    """Unit vectors around 40 centres, as noise alone has no near neighbours."""
    centre = torch.randn(40, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    rows = centre[torch.randint(0, 40, (count,), generator=generator)]
    return torch.nn.functional.normalize(rows + 0.4 * torch.randn(count, dim, generator=generator), dim=1)


@pytest.fixture(scope="module")
def docs():
    faiss.omp_set_num_threads(1)
    return clustered(6000, seed=1)


@pytest.fixture(scope="module")
def query():
    return clustered(100, seed=2)


@pytest.fixture(scope="module")
def index(docs, tmp_path_factory):
    return build(docs, HOW, tmp_path_factory.mktemp("index") / "i.faiss")


def test_most_of_the_exact_list_is_found_and_all_with_every_list_and_every_candidate(docs, query, index):
    true = nearest(query, docs, 10)
    assert 0.9 < recall(index.nearest(query, 10), true) <= 1
    index.index.nprobe = 32
    whole = dataclasses.replace(index, how=dataclasses.replace(HOW, rescore=600))
    found = whole.nearest(query, 10)
    index.index.nprobe = 8
    assert all(torch.equal(a, b) for a, b in zip(found, true, strict=True))


def test_scores_are_those_of_the_vectors_themselves(docs, query, index):
    ids, scores = index.nearest(query, 10)
    assert torch.equal(scores, exact(query, docs, ids))
    assert (scores[:, :-1] >= scores[:, 1:]).all()


def test_more_candidates_scored_exactly_find_no_less(docs, query, index):
    true = nearest(query, docs, 10)
    shares = [
        recall(dataclasses.replace(index, how=dataclasses.replace(HOW, rescore=r)).nearest(query, 10), true)
        for r in (1, 2, 8)
    ]
    assert shares == sorted(shares) and shares[0] < shares[-1]


@pytest.mark.parametrize("form", ["mask", "pairs"])
def test_hidden_documents_are_not_found(docs, query, index, form, monkeypatch):
    monkeypatch.setattr(approximate, "_HIDDEN", 1000)
    best = nearest(query, docs, 3)[0]

    def hidden(rows, columns):
        mask = torch.zeros(len(query), len(docs), dtype=torch.bool).scatter_(1, best, True)[rows, columns]
        return mask if form == "mask" else mask.nonzero() if mask.any() else None

    found = index.nearest(query[50:], 10, hidden, first=50)[0]
    assert not (found[:, :, None] == best[50:, None, :]).any()
    assert (found >= 0).all()
    assert (index.nearest(query[50:], 10)[0][:, :, None] == best[50:, None, :]).any()


def test_an_index_is_taken_from_its_file_and_of_other_vectors_made_anew(docs, tmp_path, query):
    path, added = tmp_path / "i.faiss", []
    first = build(docs, HOW, path, "one").nearest(query, 5)
    before = path.stat().st_mtime_ns
    again = build(docs, HOW, path, "one", added.append)
    assert added == [6000] and path.stat().st_mtime_ns == before
    assert all(torch.equal(a, b) for a, b in zip(first, again.nearest(query, 5), strict=True))
    assert opened(docs, HOW, path, "other") is None
    assert opened(docs, dataclasses.replace(HOW, probes=2), path, "one").index.nprobe == 2  # asks, does not shape
    build(docs, HOW, path, "other")
    assert path.stat().st_mtime_ns != before


def test_an_index_that_was_ended_half_way_goes_on(docs, tmp_path, query, monkeypatch):
    monkeypatch.setattr(approximate, "BLOCK", 500)
    whole = build(docs, HOW, tmp_path / "whole.faiss")
    path = tmp_path / "half.faiss"

    class Ended(Exception):  # noqa: N818
        pass

    def end(done):
        if done == 500:
            raise Ended

    monkeypatch.setattr(approximate, "_SAVES", 1)
    with pytest.raises(Ended):
        build(docs, HOW, path, advance=end)
    assert opened(docs, HOW, path) is None  # it has no documents yet
    kept = faiss.read_index(str(path))
    kept.add(docs[:500].numpy())
    faiss.write_index(kept, str(path))
    seen = []
    resumed = build(docs, HOW, path, advance=seen.append)
    assert seen == [500] * 12
    assert all(torch.equal(a, b) for a, b in zip(whole.nearest(query, 9), resumed.nearest(query, 9), strict=True))


def test_one_seed_gives_one_index_and_another_gives_another(docs, tmp_path, query):
    found = [
        build(docs, dataclasses.replace(HOW, seed=seed), tmp_path / f"{i}.faiss").nearest(query, 10)[0]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_vectors_of_any_length_are_ranked_by_their_products(docs, query, tmp_path):
    longer = docs * torch.linspace(0.5, 2, len(docs))[:, None]
    found = build(longer, HOW, tmp_path / "i.faiss").nearest(query, 10)
    assert recall(found, nearest(query, longer, 10)) > 0.8


def test_a_file_of_half_precision_is_indexed(docs, query, tmp_path):
    file = Mapped(write(tmp_path / "d.safetensors", docs.split(1000), (6000, 32), torch.float16))
    found = build(file, HOW, tmp_path / "i.faiss").nearest(query, 10)
    assert recall(found, nearest(query, file, 10)) > 0.9


@pytest.mark.parametrize(
    ("how", "count", "dim", "told"),
    [
        (Approximate(code_bytes=5), 10_000, 32, r"code_bytes=5 .* choose one of \[1, 2, 4, 8, 16\]"),
        (Approximate(), 10_000, 7, r"code_bytes=0 .* choose one of \[\]"),
        (Approximate(lists=4096, train_rows=1000), 10_000, 32, "1,000 of 10,000 documents to learn 4,096 lists"),
        (Approximate(), 30, 32, "30 of 30 documents"),
    ],
)
def test_what_cannot_be_indexed_so_is_told(how, count, dim, told):
    with pytest.raises(DataError, match=told):
        how.resolved(count, dim)


def test_numbers_under_their_least_are_refused():
    with pytest.raises(ValueError, match="probes=0; expected 1 or more"):
        Approximate(probes=0)


def test_zeros_are_replaced_by_what_suits_the_documents():
    assert Approximate().resolved(1_000_000, 256) == Approximate(2048, 64, 32, 131072)
    assert Approximate(seed=3).resolved(10_000, 384) == Approximate(256, 96, 32, 10_000, seed=3)


def test_recall_counts_equal_scores_as_found_and_gaps_as_nothing():
    scores = torch.tensor([[0.9, 0.5, torch.nan], [0.4, torch.nan, torch.nan]])
    true = torch.tensor([[4, 2, -1], [1, -1, -1]]), scores
    twin = torch.tensor([[4, 7, -1], [-1, -1, -1]]), scores  # 7 scores as 2 does
    assert recall(true, true) == 1
    assert recall(twin, true) == 0.5


def test_without_faiss_the_extra_is_named(docs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "omni2vec\[mine\]"'):
        build(docs, HOW, tmp_path / "i.faiss")
