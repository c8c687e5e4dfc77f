"""Soft labels against their closed forms: zero at the teacher, its entropy, its limits, invariances, gradients."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock, Example
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.soft_label import SoftLabel, best, divergence, log_softmax, own_cosines
from omni2vec.train.objectives.types import Contrastive, NoScoreError
from torch import Tensor

from .rows import row, vectors

CLOCK = Clock(step=0, progress=0.0, seed=0)
KINDS = ("kl", "ce", "symmetric", "js")


def scored(seed: int = 0) -> list[Example]:
    """Queries with one to five candidates; the second has one alone and no score."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i, (positives, negatives) in enumerate(((1, 2), (1, 0), (2, 3), (1, 1), (0, 2))):
        made = row(
            f"q{i}", " ".join(f"p{i}.{k}" for k in range(positives)), " ".join(f"n{i}.{k}" for k in range(negatives))
        )
        values = torch.randn(positives + negatives, generator=generator).tolist()
        rows.append(made if i == 1 else replace(made, scores={"rerank": tuple(values)}))
    return rows


def operands(examples: list[Example], seed: int = 0) -> tuple[Relation, list[Tensor]]:
    relation = Relation.of(examples, ["a"])
    return relation, vectors(relation, seed=seed)


def value(o: SoftLabel, relation: Relation, given: list[Tensor]) -> Tensor:
    out = o.contrast(given[0], given[1], relation, given[2], CLOCK)
    assert out.count == int((torch.bincount(relation.owner, minlength=len(given[0])) > 1).sum())
    return out.sum


def as_teacher(relation: Relation, scores: Tensor) -> Relation:
    return replace(relation, scores={"rerank": scores})


def reference(o: SoftLabel, relation: Relation, given: list[Tensor]) -> Tensor:
    """The definition, query by query."""
    query, docs, scale = given
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(query)):
        mine = (relation.owner == i).nonzero().squeeze(1)
        if len(mine) < 2:
            continue
        t = relation.scores[o.score][mine].double() / (o.teacher_temperature or 1)
        mine = mine[t.argsort(descending=True, stable=True)][: o.top or None]
        t = relation.scores[o.score][mine].double() / (o.teacher_temperature or 1)
        p, q = t.softmax(0), (scale * docs[mine] @ query[i]).softmax(0)
        m = (p + q) / 2
        total = (
            total
            + {
                "kl": (p * (p / q).log()).sum(),
                "ce": -(p * q.log()).sum(),
                "symmetric": 0.5 * (p * (p / q).log()).sum() + 0.5 * (q * (q / p).log()).sum(),
                "js": 0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum(),
            }[o.kind]
        )
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"teacher_temperature": 0.5}, {"top": 2}], ids=["plain", "warm", "top"])
def test_value_and_gradients_equal_the_definition_query_by_query(kind, settings):
    o = SoftLabel(kind=kind, **settings)
    assert isinstance(o, Contrastive)
    relation, given = operands(scored())
    ours, theirs = value(o, relation, given), reference(o, relation, given)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    pairs = zip(torch.autograd.grad(ours, given), torch.autograd.grad(theirs, given), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in pairs)


@pytest.mark.parametrize("kind", ["kl", "symmetric", "js"])
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(kind):
    relation, given = operands(scored())
    cosines = (given[0][relation.owner] * given[1]).sum(-1)
    found = value(SoftLabel(kind=kind), as_teacher(relation, (given[2] * cosines).detach()), given)
    assert abs(found.item()) < 1e-14
    assert max(g.abs().max().item() for g in torch.autograd.grad(found, given)) < 1e-12


def test_cross_entropy_is_the_divergence_and_the_entropy_of_the_teacher():
    relation, given = operands(scored())
    entropy = 0.0
    for i in (0, 2, 3, 4):
        p = relation.scores["rerank"][relation.owner == i].double().softmax(0)
        entropy -= float((p * p.log()).sum())
    ce, kl = (value(SoftLabel(kind=k), relation, given) for k in ("ce", "kl"))
    assert (ce - kl).item() == pytest.approx(entropy, rel=1e-12)
    pairs = zip(torch.autograd.grad(ce, given), torch.autograd.grad(kl, given), strict=True)
    assert all(torch.allclose(a, b, atol=1e-13) for a, b in pairs)


@pytest.mark.parametrize("kind", ["kl", "ce"])
def test_a_teacher_sure_of_the_positive_gives_infonce_against_own_negatives(kind):
    examples = [row(f"q{i}", f"d{i}", " ".join(f"n{i}.{k}" for k in range(i + 1))) for i in range(4)]
    relation, given = operands(examples)
    sure = as_teacher(relation, relation.positive.double() * 1e4)
    plain = InfoNCE(negatives="own", in_batch=False).contrast(given[0], given[1], relation, given[2], CLOCK).sum
    found = value(SoftLabel(kind=kind), sure, given)
    assert found.item() == pytest.approx(plain.item(), rel=1e-12)
    pairs = zip(torch.autograd.grad(found, given), torch.autograd.grad(plain, given), strict=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_added_to_all_scores_of_a_query_changes_nothing(kind):
    relation, given = operands(scored())
    base = relation.scores["rerank"].double()
    moved = base + torch.tensor([3.0, 0.0, -40.0, 1e3, 7.0], dtype=torch.float64)[relation.owner]
    values = [value(SoftLabel(kind=kind), as_teacher(relation, t), given).item() for t in (base, moved)]
    assert values[0] == pytest.approx(values[1], rel=1e-11)


@pytest.mark.parametrize("kind", ["symmetric", "js"])
def test_the_symmetric_kinds_are_symmetric_and_the_others_are_not(kind):
    lengths = torch.tensor([3, 2, 4])
    p, q = (log_softmax(torch.randn(9, dtype=torch.float64) * 3, lengths) for _ in range(2))
    assert divergence(p, q, kind).item() == pytest.approx(divergence(q, p, kind).item(), rel=1e-12)
    assert abs((divergence(p, q, "kl") - divergence(q, p, "kl")).item()) > 1e-3


def test_jensen_shannon_is_not_the_reversed_divergence_of_published_code():
    p, q = (torch.tensor([x, 1 - x], dtype=torch.float64) for x in (0.969, 0.554))
    m = (p + q) / 2
    reversed_ = 0.5 * (m * (m / p).log()).sum() + 0.5 * (m * (m / q).log()).sum()
    assert reversed_.item() == pytest.approx(0.198, abs=1e-3)  # U-MARVEL's KL(M || P) and KL(M || Q)
    assert divergence(p.log(), q.log(), "js").item() == pytest.approx(0.137, abs=1e-3)


def test_jensen_shannon_is_log_two_at_most_and_reaches_it():
    lengths = torch.tensor([2])
    for apart in (1.0, 10.0, 1e3):
        logits = torch.tensor([apart, -apart])
        found = divergence(log_softmax(logits, lengths), log_softmax(-logits, lengths), "js").item()
        assert 0 < found <= log(2) + 1e-6
    assert found == pytest.approx(log(2), rel=1e-6)


def test_a_fused_teacher_without_scores_is_self_distillation():
    relation, given = operands(scored())
    assert abs(value(SoftLabel(fused=0.0), relation, given).item()) < 1e-14
    assert value(SoftLabel(fused=0.5), relation, given).item() > 1e-3


def test_a_fused_teacher_has_no_gradient_of_its_own_cosines_or_temperature():
    relation, given = operands(scored())
    cosines = (given[0][relation.owner] * given[1]).sum(-1)
    fixed = as_teacher(relation, (given[2] * (cosines + 0.5 * relation.scores["rerank"])).detach())
    fused, plain = value(SoftLabel(fused=0.5), relation, given), value(SoftLabel(), fixed, given)
    assert fused.item() == pytest.approx(plain.item(), rel=1e-12)
    pairs = zip(torch.autograd.grad(fused, given), torch.autograd.grad(plain, given), strict=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


def test_a_temperature_of_its_own_replaces_the_scale():
    relation, given = operands(scored())
    own, scale = value(SoftLabel(temperature=1 / 7), relation, given), value(SoftLabel(), relation, given)
    assert own.item() == pytest.approx(scale.item(), rel=1e-12)
    assert torch.autograd.grad(own, given[2], allow_unused=True)[0] is None


def test_no_query_with_two_candidates_is_a_zero_with_a_gradient():
    relation, given = operands([row("q0", "d0"), row("q1", "d1")])
    out = SoftLabel().contrast(given[0], given[1], relation, given[2], CLOCK)
    assert (out.sum.item(), out.count) == (0.0, 0)
    assert torch.autograd.grad(out.sum, given)[0].abs().max() == 0


def test_a_missing_score_and_an_infinite_one_name_the_row():
    examples = scored()
    relation, given = operands(examples)
    lacking = relation.scores["rerank"].clone()
    lacking[relation.owner == 3] = torch.nan
    with pytest.raises(NoScoreError, match="row 3: no score 'rerank'"):
        value(SoftLabel(), as_teacher(relation, lacking), given)
    lacking[relation.owner == 3] = torch.inf
    with pytest.raises(NoScoreError, match="row 3: an infinite score"):
        value(SoftLabel(), as_teacher(relation, lacking), given)
    with pytest.raises(NoScoreError, match="judged"):
        value(SoftLabel(score="judged"), relation, given)


def test_equal_scores_keep_their_order_among_the_best():
    owner, score = torch.tensor([0, 0, 0, 2, 2, 2]), torch.tensor([1.0, 2.0, 2.0, 5.0, 5.0, 9.0])
    assert best(score, owner, 2).tolist() == [1, 2, 3, 5]


def test_documents_that_stand_in_any_order_have_the_same_loss():
    relation, given = operands(scored())
    order = torch.randperm(len(relation.owner), generator=torch.Generator().manual_seed(1))
    moved = replace(relation, owner=relation.owner[order], scores={"rerank": relation.scores["rerank"][order]})
    there = value(SoftLabel(), moved, [given[0], given[1][order], given[2]])
    assert there.item() == pytest.approx(value(SoftLabel(), relation, given).item(), rel=1e-12)


def test_own_cosines_pass_a_gradient_check():
    owner = torch.tensor([0, 0, 2, 1, 2])
    query, docs = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    assert torch.autograd.gradcheck(lambda a, b: own_cosines(a, b, owner), (query, docs))


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"kind": "jsd"}, "kind"), ({"temperature": 0.0}, "temperature"), ({"top": 1}, "top"), ({"fused": -1.0}, "fused")],
)
def test_a_setting_out_of_range_is_refused_by_name(settings, word):
    with pytest.raises(ValueError, match=word):
        SoftLabel(**settings)
