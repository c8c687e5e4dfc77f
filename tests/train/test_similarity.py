"""Distilled likenesses against the full matrix: values, gradients, both directions, copies, any dimension."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock, DataError
from omni2vec.data.vectors import DOCUMENT, QUERY, ordered, write
from omni2vec.train.loss import opened
from omni2vec.train.objectives.similarity import Similarity
from omni2vec.train.objectives.types import Contrastive, NoScoreError, Opens, Sharded
from torch import Tensor

from .rows import mixed, plain, row, vectors
from .test_sharded import Made, together
from .threaded import on_ranks

CLOCK = Clock(step=0, progress=0.0, seed=0)


def where(step: object) -> Path:
    raise AssertionError("no step is named here")


def taught(folder: Path, ids: Tensor, matrix: Tensor, name: str, teacher: str = "t") -> Tensor:
    """Writes one table, one vector an id; gives every row's."""
    unique, which = torch.unique(ids, dim=0, return_inverse=True)
    order = ordered(unique.numpy())
    chosen = matrix[: len(unique)][order]
    every = np.arange(len(unique))
    dim, about = matrix.shape[1], {"teacher": teacher}
    write(folder / name, unique.numpy()[order], [(every, chosen.numpy().astype(np.float32))], dim, about, "float32")
    return F.normalize(matrix.float().double(), dim=-1)[which]


def teacher_of(folder: Path, relation: Relation, dim: int = 9) -> tuple[Tensor, Tensor]:
    made = torch.randn(2, 200, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    query = taught(folder, relation.query_id, made[0], QUERY)
    return query, taught(folder, relation.doc_id, made[1], DOCUMENT)


def reference(o: Similarity, relation: Relation, given: list[Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """The definition over full matrices, copies by a Python count."""

    def offsets(ids: Tensor) -> Tensor:
        names = [tuple(i) for i in ids.tolist()]
        return -torch.tensor([names.count(n) for n in names], dtype=torch.float64).log()

    student = given[2] * given[0] @ given[1].T
    target = teacher[0] @ teacher[1].T / (o.teacher_temperature or 1 / given[2].item())
    ways = [(student + offsets(relation.doc_id), target + offsets(relation.doc_id))]
    if o.kind == "both":
        ways.append((student.T + offsets(relation.query_id), target.T + offsets(relation.query_id)))
    means = [F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean") for s, t in ways]
    return torch.stack(means).mean() * len(student)


@pytest.mark.parametrize("tile", [1, 5, 1536])
@pytest.mark.parametrize("kind", ["rows", "both"])
def test_value_and_gradients_equal_the_full_matrices(tmp_path, kind, tile):
    relation = Relation.of(mixed(), ["a", "b"])
    given, teacher = vectors(relation), teacher_of(tmp_path, relation)
    given[2].data.fill_(20.0)
    o = Similarity(str(tmp_path), kind=kind, tile=tile)
    out = o.opened(where).contrast(given[0], given[1], relation, given[2], CLOCK)
    theirs = reference(o, relation, given, teacher)
    assert out.count == len(given[0])
    assert out.sum.item() == pytest.approx(theirs.item(), rel=1e-6)  # the table is float32
    pairs = zip(torch.autograd.grad(3 * out.sum, given), torch.autograd.grad(3 * theirs, given), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=5e-5) for a, b in pairs)


def test_gradients_pass_a_finite_difference_check(tmp_path):
    relation = Relation.of([*plain(3), row("q0", "d1 d3", "d0")], ["a"])
    given = vectors(relation)
    teacher_of(tmp_path, relation)
    o = Similarity(str(tmp_path), tile=2).opened(where)
    assert torch.autograd.gradcheck(lambda a, b, s: o.contrast(a, b, relation, s, CLOCK).sum, given)


def test_both_directions_do_not_change_when_queries_and_documents_change_places(tmp_path):
    examples = plain(6)
    relation = Relation.of(examples, ["a"])
    given, teacher = vectors(relation), teacher_of(tmp_path, relation)
    there = tmp_path / "turned"
    there.mkdir()
    (tmp_path / QUERY).rename(there / DOCUMENT)
    (tmp_path / DOCUMENT).rename(there / QUERY)
    turned = replace(relation, query_id=relation.doc_id, doc_id=relation.query_id)
    o = Similarity(str(there)).opened(where)
    back = o.contrast(given[1], given[0], turned, given[2], CLOCK).sum.item()
    assert back == pytest.approx(reference(Similarity("t"), relation, given, teacher).item(), rel=1e-6)


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(tmp_path):
    relation = Relation.of(plain(7), ["a"])
    made = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = [
        taught(tmp_path, ids, made[i], name)
        for i, (ids, name) in enumerate(((relation.query_id, QUERY), (relation.doc_id, DOCUMENT)))
    ]
    operands = [t.requires_grad_() for t in (*given, torch.tensor([20.0], dtype=torch.float64))]
    for settings in ({"teacher_temperature": 0.05}, {"teacher_temperature": None}):
        out = Similarity(str(tmp_path), **settings).opened(where).contrast(*operands[:2], relation, operands[2], CLOCK)
        assert abs(out.sum.item()) < 1e-9
        assert max(g.abs().max().item() for g in torch.autograd.grad(out.sum, operands)) < 1e-5


def test_a_copy_of_a_document_changes_no_rows_loss(tmp_path):
    examples = [row("q0", "d0"), row("q1", "d1"), row("q2", "d2")]
    relation = Relation.of(examples, ["a"])
    given = vectors(relation)
    teacher_of(tmp_path, relation)
    again = Relation.of([*examples[:2], row("q2", "d2", "d0 d0")], ["a"])
    more = torch.cat([given[1], given[1][:1], given[1][:1]])
    o = Similarity(str(tmp_path), kind="rows").opened(where)
    once = o.contrast(given[0], given[1], relation, given[2], CLOCK).sum.item()
    assert o.contrast(given[0], more, again, given[2], CLOCK).sum.item() == pytest.approx(once, rel=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["rows", "both"])
def test_ranks_together_give_the_value_and_gradients_of_one_process(tmp_path, kind, size):
    relation = Relation.of(mixed(), ["a", "b"])
    given = vectors(relation)
    teacher_of(tmp_path, relation)
    o = Similarity(str(tmp_path), kind=kind, tile=8).opened(where)
    assert isinstance(o, Sharded) and isinstance(o, Contrastive)
    alone = o.contrast(given[0], given[1], relation, given[2], CLOCK)
    whole = torch.autograd.grad(alone.sum, given)
    detached = [t.detach() for t in given]
    parts = on_ranks(size, lambda g: o.sharded(detached[0], detached[1], relation, detached[2], CLOCK, g))
    assert all(p.sum.item() == pytest.approx(alone.sum.item(), rel=1e-12) for p in parts)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(together(parts), whole, strict=True))


def test_no_tensor_is_larger_than_a_tile_or_the_operands(tmp_path):
    relation = Relation.of(plain(120), ["a"])
    made = torch.randn(2, 120, 4)
    for ids, matrix, name in ((relation.query_id, made[0], QUERY), (relation.doc_id, made[1], DOCUMENT)):
        taught(tmp_path, ids, matrix, name)
    given = [t.detach() for t in vectors(relation)]
    with Made({t.untyped_storage().data_ptr() for t in given}) as watched:
        Similarity(str(tmp_path), tile=30).opened(where).contrast(given[0], given[1], relation, given[2], CLOCK)
    assert watched.numel <= max(30 * 30, 120 * 5)


def test_an_item_without_a_vector_names_its_row(tmp_path):
    relation = Relation.of(plain(4), ["a"])
    teacher_of(tmp_path, relation)
    o = Similarity(str(tmp_path)).opened(where)
    for examples, said in (
        ([*plain(3), row("new", "d3")], "row 3: .*for its query"),
        ([row("q0", "d0", "d9")], "row 0: .*for its document"),
    ):
        other = Relation.of(examples, ["a"])
        given = vectors(other)
        with pytest.raises(NoScoreError, match=said):
            o.contrast(given[0], given[1], other, given[2], CLOCK)


def test_tables_of_two_teachers_are_refused_and_a_missing_folder_is_named(tmp_path):
    relation = Relation.of(plain(4), ["a"])
    made = torch.randn(4, 3)
    taught(tmp_path, relation.query_id, made, QUERY, "one")
    with pytest.raises(DataError, match=r"document\.safetensors: no such table"):
        Similarity(str(tmp_path)).opened(where)
    taught(tmp_path, relation.doc_id, made, DOCUMENT, "two")
    with pytest.raises(DataError, match="must be of one teacher"):
        Similarity(str(tmp_path)).opened(where)


def test_a_stage_opens_it_and_unopened_it_says_so(tmp_path):
    relation = Relation.of(plain(4), ["a"])
    teacher_of(tmp_path, relation)
    o = Similarity(str(tmp_path))
    assert isinstance(o, Opens) and isinstance(o, Contrastive)
    given = vectors(relation)
    with pytest.raises(ValueError, match="not open"):
        o.contrast(given[0], given[1], relation, given[2], CLOCK)
    assert opened(o, where).contrast(given[0], given[1], relation, given[2], CLOCK).count == 4


@pytest.mark.parametrize(
    ("settings", "word"), [({"kind": "columns"}, "kind"), ({"temperature": -1.0}, "temperature"), ({"tile": 0}, "tile")]
)
def test_a_setting_out_of_range_is_refused_by_name(settings, word):
    with pytest.raises(ValueError, match=word):
        Similarity("folder", **settings)
