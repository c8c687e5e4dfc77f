"""InfoNCE against a plain reference over the full matrix, in float64: values, gradients, masks, memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock, Example
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.types import Contrastive
from torch import Tensor

from .rows import mixed, plain, row, vectors

CLOCK = Clock(step=0, progress=0.0, seed=0)


def reference(o: InfoNCE, examples: list[Example], query: Tensor, docs: Tensor, scale: Tensor) -> tuple[Tensor, int]:
    """The definition, over the full matrix: cross-entropy of each positive against its negatives, by Python sets."""
    logits = scale * query @ docs.T
    flat = [
        (i, k < len(e.positives), d.id) for i, e in enumerate(examples) for k, d in enumerate(e.positives + e.negatives)
    ]
    right = [{e.query.id, *e.known, *(p.id for p in e.positives)} for e in examples]
    for i, e in enumerate(examples):
        right[i] = set().union(*(r for r, other in zip(right, examples, strict=True) if other.query.id == e.query.id))

    def negative(i: int, j: int, backward: bool = False) -> bool:
        owner, positive, identity = flat[j]
        mine, theirs = examples[i], examples[owner]
        if identity in right[i] or (theirs.source != mine.source and not o.across_sources):
            return False
        if o.mask_labels and owner != i and mine.label and mine.label == theirs.label:
            return False
        return backward or (o.in_batch if positive else owner == i or o.negatives == "shared")

    total, ways = torch.zeros((), dtype=query.dtype), 0.5 if o.both else 1.0
    for j, (i, positive, _) in enumerate(flat):
        if positive:
            others = [logits[i, c] for c in range(len(flat)) if negative(i, c)]
            loss = F.cross_entropy(torch.stack([logits[i, j], *others])[None], torch.tensor([0]))
            if o.both:
                others = [logits[r, j] for r in range(len(examples)) if negative(r, j, backward=True)]
                loss = loss + F.cross_entropy(torch.stack([logits[i, j], *others])[None], torch.tensor([0]))
            total = total + ways * loss / len(examples[i].positives)
    return total, sum(bool(e.positives) for e in examples)


def ours(o: InfoNCE, examples: list[Example], *operands: Tensor) -> tuple[Tensor, int]:
    result = o.contrast(operands[0], operands[1], Relation.of(examples, ["a", "b"]), operands[2], CLOCK)
    return result.sum, result.count


def grads(loss: Tensor, operands: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, operands))


OPTIONS: list[dict[str, Any]] = [
    {"negatives": n, "in_batch": b, "both": t, "mask_labels": m, "across_sources": a}
    for n, b, t, m, a in product(("shared", "own"), (True, False), (False, True), (False, True), (False, True))
    if b or not t
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_value_and_gradients_equal_the_definition_for_every_option(options: dict[str, Any]) -> None:
    examples = mixed()
    operands = vectors(Relation.of(examples, ["a", "b"]))
    expected, count = reference(InfoNCE(**options), examples, *operands)
    wanted = grads(expected, operands)
    for tile in (3, 1024):
        loss, ours_count = ours(InfoNCE(**options, tile=tile), examples, *operands)
        assert ours_count == count == 22
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        for got, want in zip(grads(loss, operands), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("tile", [1, 2, 5, 16, 64])
def test_the_tile_never_changes_the_result(tile: int, both: bool) -> None:
    examples = mixed(37)
    operands = vectors(Relation.of(examples, ["a", "b"]))
    whole = ours(InfoNCE(both=both), examples, *operands)[0]
    tiled = ours(InfoNCE(both=both, tile=tile), examples, *operands)[0]
    torch.testing.assert_close(tiled, whole, rtol=1e-13, atol=1e-13)
    for got, want in zip(grads(tiled, operands), grads(whole, operands), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("both", [False, True])
def test_without_hard_negatives_and_repeats_it_is_cross_entropy_with_the_diagonal(both: bool) -> None:
    operands = vectors(Relation.of(plain(19), ["a"]))
    logits = operands[2] * operands[0] @ operands[1].T
    diagonal = torch.arange(19)
    ways = [F.cross_entropy(m, diagonal, reduction="sum") for m in ((logits, logits.T) if both else (logits,))]
    expected = sum(ways[1:], ways[0]) / len(ways)
    loss, count = ours(InfoNCE(both=both, tile=4), plain(19), *operands)
    assert count == 19
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for got, want in zip(grads(loss, operands), grads(expected, operands), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("both", [False, True])
def test_identical_vectors_give_log_of_the_batch(both: bool) -> None:
    one = F.normalize(torch.ones(16, 3, dtype=torch.float64), dim=-1)
    loss, count = ours(InfoNCE(both=both, tile=4), plain(16), one, one.clone(), torch.tensor([20.0]).double())
    assert float(loss) / count == pytest.approx(log(16), rel=1e-12)


def test_one_negative_gives_the_softplus_of_the_difference() -> None:
    examples = [row("q", "d", "n")]
    query, docs, scale = vectors(Relation.of(examples, ["a"]))
    loss, _ = ours(InfoNCE(), examples, query, docs, scale)
    difference = float((scale * (query[0] @ docs[1] - query[0] @ docs[0])).detach())
    assert float(loss.detach()) == pytest.approx(log(1 + 2.718281828459045**difference), rel=1e-12)


def test_the_gradient_of_the_logits_is_softmax_less_one_hot() -> None:
    query, docs, scale = vectors(Relation.of(plain(6), ["a"]))
    probability = (scale * query @ docs.T).softmax(1) - torch.eye(6)
    (got,) = torch.autograd.grad(ours(InfoNCE(), plain(6), query, docs, scale)[0], [docs])
    torch.testing.assert_close(got, scale * probability.T @ query, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "options", [{}, {"both": True}, {"negatives": "own", "both": True}, {"mask_labels": True}], ids=str
)
def test_gradients_equal_finite_differences(options: dict[str, Any]) -> None:
    examples = mixed(13)
    operands = vectors(Relation.of(examples, ["a", "b"]), dim=3)
    o = InfoNCE(**options, tile=4)
    assert torch.autograd.gradcheck(lambda *t: ours(o, examples, *t)[0], operands, atol=1e-6, fast_mode=True)


def test_hard_negatives_shared_and_own_agree_for_one_query() -> None:
    examples = [row("q", "d e", "n m o")]
    operands = vectors(Relation.of(examples, ["a"]))
    shared, own = (ours(InfoNCE(negatives=n), examples, *operands)[0] for n in ("shared", "own"))  # type: ignore[arg-type]
    torch.testing.assert_close(shared, own, rtol=1e-13, atol=0)
    assert float(shared.detach()) > 0.01


def test_shared_hard_negatives_cost_more_than_own_ones() -> None:
    examples = [row(f"q{i}", f"d{i}", f"n{i}") for i in range(8)]
    operands = vectors(Relation.of(examples, ["a"]))
    shared, own = (ours(InfoNCE(negatives=n), examples, *operands)[0] for n in ("shared", "own"))  # type: ignore[arg-type]
    assert float((shared - own).detach()) > 1


@pytest.mark.parametrize("both", [False, True])
def test_the_order_of_rows_does_not_matter(both: bool) -> None:
    examples = mixed()
    query, docs, scale = vectors(Relation.of(examples, ["a", "b"]))
    order = torch.randperm(len(examples)).tolist()
    sizes = [len(e.positives) + len(e.negatives) for e in examples]
    pieces = docs.split(sizes)
    shuffled = [query[order], torch.cat([pieces[i] for i in order]), scale]
    o = InfoNCE(both=both, tile=5)
    loss, moved = ours(o, examples, query, docs, scale)[0], ours(o, [examples[i] for i in order], *shuffled)[0]
    torch.testing.assert_close(moved, loss, rtol=1e-12, atol=0)
    for got, want in zip(grads(moved, [query, docs, scale]), grads(loss, [query, docs, scale]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("both", [False, True])
def test_documents_may_stand_in_any_order_of_the_relation(both: bool) -> None:
    examples = mixed()
    relation = Relation.of(examples, ["a", "b"])
    query, docs, scale = vectors(relation)
    order = torch.randperm(len(docs))
    fields = ("owner", "positive", "rank", "doc_id")
    moved = replace(relation, **{f: getattr(relation, f)[order] for f in fields})
    o = InfoNCE(both=both, tile=6)
    losses = [o.contrast(query, d, r, scale, CLOCK).sum for d, r in ((docs, relation), (docs[order], moved))]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    for got, want in zip(*(grads(loss, [query, docs, scale]) for loss in losses), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    "changed",
    [row("q2", "d0"), row("q2", "d2", known="d0"), row("d0", "d2")],
    ids=["same document as its own answer", "known but not drawn", "its own Item"],
)
def test_a_right_answer_is_no_negative(changed: Example, both: bool) -> None:
    """Then the gradient reaches it only from its own row: as if that document's column were not there."""
    examples = [*plain(2), changed]
    relation = Relation.of(examples, ["a"])
    query, docs, scale = vectors(relation)
    (grad,) = torch.autograd.grad(ours(InfoNCE(both=both), examples, query, docs, scale)[0], [docs])
    moved = query.detach().clone()
    moved[2] = F.normalize(torch.randn(5, dtype=torch.float64), dim=-1)
    (after,) = torch.autograd.grad(ours(InfoNCE(both=both), examples, moved, docs, scale)[0], [docs])
    torch.testing.assert_close(after[0], grad[0], rtol=1e-12, atol=1e-13)  # document 0 does not feel query 2
    assert not torch.allclose(after[1], grad[1])  # document 1 does


def test_a_masked_column_is_a_column_removed() -> None:
    examples = [row("q0", "d0", "x"), row("q1", "d1", "d0")]  # the hard negative of row 1 is what row 0 looks for
    query, docs, scale = vectors(Relation.of(examples, ["a"]))
    first, second = (scale * query @ docs.T).detach()
    expected = torch.logsumexp(first[[0, 1, 2]], 0) - first[0] + torch.logsumexp(second, 0) - second[2]
    torch.testing.assert_close(ours(InfoNCE(), examples, query, docs, scale)[0].detach(), expected)


def test_classes_mask_each_other_and_unnamed_rows_do_not() -> None:
    distinct = [row(f"q{i}", f"d{i}", f"n{i}", label=f"{i}" if i < 6 else "") for i in range(9)]
    equal = [row(f"q{i}", f"d{i}", f"n{i}", label="one") for i in range(9)]
    operands = vectors(Relation.of(distinct, ["a"]))
    masked, unmasked = (ours(InfoNCE(mask_labels=m), distinct, *operands)[0] for m in (True, False))
    torch.testing.assert_close(masked, unmasked, rtol=1e-13, atol=0)
    only_own, nothing_else = (
        ours(InfoNCE(mask_labels=True), equal, *operands)[0],
        ours(InfoNCE(negatives="own", in_batch=False), equal, *operands)[0],
    )
    torch.testing.assert_close(only_own, nothing_else, rtol=1e-13, atol=0)


def test_sources_that_do_not_meet_add_up() -> None:
    first, second = [row(f"q{i}", f"d{i}") for i in range(5)], [row(f"r{i}", f"e{i}", source="b") for i in range(4)]
    query, docs, scale = vectors(Relation.of(first + second, ["a", "b"]))
    together = ours(InfoNCE(both=True), first + second, query, docs, scale)[0]
    apart = ours(InfoNCE(both=True), first, query[:5], docs[:5], scale)[0]
    apart = apart + ours(InfoNCE(both=True), second, query[5:], docs[5:], scale)[0]
    torch.testing.assert_close(together, apart, rtol=1e-13, atol=0)
    across = ours(InfoNCE(both=True, across_sources=True), first + second, query, docs, scale)[0]
    assert float((across - apart).detach()) > 1


def test_several_positives_have_their_optimum_at_zero() -> None:
    """A softmax over all positives together would stay at log 3 (arXiv:2508.11442)."""
    examples = [row("q0", "a b c", "n"), row("q1", "d e f", "m")]
    axes = torch.eye(4, dtype=torch.float64)
    docs = axes[[0, 0, 0, 2, 1, 1, 1, 3]]
    loss, count = ours(InfoNCE(both=True), examples, axes[:2], docs, torch.tensor([100.0]).double())
    assert count == 2
    assert 0 <= float(loss) < 1e-40


@pytest.mark.parametrize("both", [False, True])
def test_rows_without_negatives_give_zero_and_no_gradient(both: bool) -> None:
    examples = [row("q0", "same"), row("q1", "same"), row("q2", "same")]
    operands = vectors(Relation.of(examples, ["a"]))
    loss, count = ours(InfoNCE(both=both), examples, *operands)
    assert (float(loss), count) == (0.0, 3)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads(loss, operands))


@pytest.mark.parametrize(
    "examples",
    [[], [row("q0", "")], [row("q0", "", "n"), row("q1", "d")]],
    ids=["no rows", "no documents", "no positive"],
)
@pytest.mark.parametrize("both", [False, True])
def test_a_batch_with_nothing_to_learn_stays_on_the_graph(examples: list[Example], both: bool) -> None:
    operands = vectors(Relation.of(examples, ["a"]))
    for negatives in ("shared", "own"):
        loss, count = ours(InfoNCE(both=both, negatives=negatives), examples, *operands)  # type: ignore[arg-type]
        assert count == sum(bool(e.positives) for e in examples)
        assert all(torch.isfinite(g).all() for g in grads(loss, operands))


@pytest.mark.parametrize("both", [False, True])
def test_float32_neither_overflows_nor_loses_a_row_at_temperature_one_hundredth(both: bool) -> None:
    """Cosine 1 at 1/100: exp overflows float32. Cosine -1: a shift by the largest possible logit would give log 0."""
    examples = mixed(40)
    relation = Relation.of(examples, ["a", "b"])
    query, docs, _ = vectors(relation, dim=2)  # two dimensions: cosines fill [-1, 1]
    scale = torch.tensor([100.0], dtype=torch.float64, requires_grad=True)
    exact = [query, docs, scale]
    single = [t.detach().float().requires_grad_() for t in exact]
    want, got = (ours(InfoNCE(both=both, tile=16), examples, *t)[0] for t in (exact, single))
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    for a, b in zip(grads(got, single), grads(want, exact), strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 1e-5


def test_autocast_leaves_the_loss_in_float32() -> None:
    operands = [t.detach().float().requires_grad_() for t in vectors(Relation.of(mixed(), ["a", "b"]))]
    outside = ours(InfoNCE(both=True), mixed(), *operands)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ours(InfoNCE(both=True), mixed(), *operands)[0]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_without_gradients_the_value_is_the_same() -> None:
    operands = vectors(Relation.of(mixed(), ["a", "b"]))
    for both in (False, True):
        with_grad = ours(InfoNCE(both=both), mixed(), *operands)[0]
        with torch.no_grad():
            without = ours(InfoNCE(both=both), mixed(), *operands)[0]
        assert not without.requires_grad
        assert torch.equal(without, with_grad.detach())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negatives": "hard"}, "shared, own"),
        ({"tile": 0}, "tile=0"),
        ({"both": True, "in_batch": False}, "in_batch=True"),
    ],
)
def test_a_wrong_option_is_refused_when_it_is_given(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        InfoNCE(**options)


def test_vectors_of_other_rows_than_the_relations_are_refused() -> None:
    query, docs, scale = vectors(Relation.of(plain(4), ["a"]))
    with pytest.raises(ValueError, match="3 query and 4 document vectors for a Relation of 4"):
        ours(InfoNCE(), plain(4), query[:3], docs, scale)
    with pytest.raises(ValueError, match=r"expected \(1,\)"):
        ours(InfoNCE(), plain(4), query, docs, torch.ones(2).double())


def test_the_objective_of_the_documentation_is_one_and_learns() -> None:
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[-1].split("```")[0], names)
    hardest = names["Hardest"]()
    operands = vectors(Relation.of(plain(6), ["a"]))
    result = hardest.contrast(*operands[:2], Relation.of(plain(6), ["a"]), operands[2], CLOCK)
    assert isinstance(hardest, Contrastive)
    assert result.count == 6
    assert 0 < float(result.sum.detach()) < float(ours(InfoNCE(), plain(6), *operands)[0].detach())
    assert float(grads(result.sum, operands)[0].abs().max()) > 0
