"""Row-wise objectives by their closed forms and limits, in float64: what each is where it is something known."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, log
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.relation import Relation
from omni2vec.data.schedules import Ramp
from omni2vec.data.types import Clock, Example
from omni2vec.train.gather import Group
from omni2vec.train.loss import Bound, Owners, batch_loss
from omni2vec.train.objectives.diht import DiHT
from omni2vec.train.objectives.focal import Focal
from omni2vec.train.objectives.focal_infonce import FocalInfoNCE
from omni2vec.train.objectives.hardness import Hardness
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.masked import Masked
from omni2vec.train.objectives.progressive import Progressive
from omni2vec.train.objectives.rowwise import Plain
from omni2vec.train.objectives.seen import Seen
from omni2vec.train.objectives.soft_cse import SoftCSE
from torch import Tensor

from .rows import mixed, plain, row, vectors
from .rowwise_cases import CASES, CLOCK, ours, whole

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def relation_of(examples: list[Example]) -> Relation:
    return Relation.of(examples, ["a", "b"])


def same(a: Any, b: Any, examples: list[Example], operands: list[Tensor] | None = None) -> None:
    relation = relation_of(examples)
    operands = operands or vectors(relation)
    (first, count, by), (second, other, wanted) = (whole(o, relation, operands) for o in (a, b))
    assert count == other
    torch.testing.assert_close(first, second, **EXACT)
    torch.testing.assert_close(by, wanted, **EXACT)


def at_cosines(cosines: list[float], scale: float = 10.0) -> tuple[list[Example], list[Tensor]]:
    """One query, its positive first, then given negatives, at these cosines."""
    examples = [row("q", "d", " ".join(f"n{i}" for i in range(len(cosines) - 1)))]
    docs = torch.tensor([[c, (1 - c * c) ** 0.5] for c in cosines], dtype=torch.float64)
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    return examples, [t.requires_grad_() for t in (query, docs, torch.tensor([scale], dtype=torch.float64))]


def pulls(o: Any, cosines: list[float], scale: float = 10.0) -> list[float]:
    """The gradient by each cosine: that by the document, along the query."""
    examples, operands = at_cosines(cosines, scale)
    gradient: list[float] = torch.autograd.grad(ours(o, examples, *operands)[0], operands[1])[0][:, 0].tolist()
    return gradient


def value(o: Any, cosines: list[float], scale: float = 10.0) -> float:
    examples, operands = at_cosines(cosines, scale)
    return float(ours(o, examples, *operands)[0].detach())


@pytest.mark.parametrize(
    "limit",
    [
        Masked(margin=inf, both=True),
        Focal(gamma=0.0, both=True),
        Focal(gamma=0.0, detached=False, both=True),
        Hardness(alpha=0.0, both=True),
        DiHT(a=1.0, beta=0.0, both=True),
        Progressive(InfoNCE(both=True), kappa=0.0),
        Progressive(Plain(both=True), kappa=0.0),
    ],
    ids=lambda o: type(o).__name__,
)
def test_at_its_limit_it_is_infonce(limit: Any) -> None:
    same(limit, InfoNCE(both=True), mixed())


@pytest.mark.parametrize(
    "inner", [Masked(query_query=True), Focal(both=True), SoftCSE()], ids=lambda o: type(o).__name__
)
def test_progressive_at_zero_is_its_inner_objective(inner: Any) -> None:
    same(Progressive(inner, kappa=0.0), inner, mixed())


# L1, L2, L4 and L8: what InfoNCE's own tests do not show


def test_identical_vectors_cost_log_of_the_batch_and_one_negative_a_softplus() -> None:
    one = F.normalize(torch.ones(16, 3, dtype=torch.float64), dim=-1)
    loss, count = ours(Plain(tile=4), plain(16), one, one.clone(), torch.tensor([20.0]).double())
    assert float(loss) / count == pytest.approx(log(16), rel=1e-12)
    assert value(Plain(), [0.3, 0.5]) == pytest.approx(log(1 + exp(10 * 0.2)), rel=1e-12)


@pytest.mark.parametrize("objective", [InfoNCE, Plain, Masked])
def test_classes_all_distinct_mask_nothing_and_all_equal_leave_own_hard_negatives(objective: Any) -> None:
    distinct = [row(f"q{i}", f"d{i}", f"n{i}", label=f"{i}") for i in range(7)]
    equal = [row(f"q{i}", f"d{i}", f"n{i}", label="one") for i in range(7)]
    same(objective(mask_labels=True), objective(), distinct)
    same(objective(mask_labels=True), objective(negatives="own", in_batch=False), equal)


def test_several_positives_have_their_optimum_at_zero_and_one_is_plain() -> None:
    """A softmax that is averaged over the positives would stay at log 3."""
    axes = torch.eye(4, dtype=torch.float64)
    operands = [axes[:2], axes[[0, 0, 0, 2, 1, 1, 1, 3]], torch.tensor([100.0]).double()]
    loss, count = ours(Plain(), [row("q0", "a b c", "n"), row("q1", "d e f", "m")], *operands)
    assert count == 2 and 0 <= float(loss) < 1e-40
    together = (100 * operands[0] @ operands[1].T).log_softmax(1)[0, :3].mean()
    assert -float(together) == pytest.approx(log(3), rel=1e-12)


def test_the_mean_over_positives_is_the_mean_of_one_positive_at_a_time() -> None:
    examples = [row("q", "a b", "n m")]
    query, docs, scale = vectors(relation_of(examples))
    both = ours(Masked(), examples, query, docs, scale)[0]
    each = [ours(Masked(), [row("q", "a", "n m", known="b")], query, docs[[k, 2, 3]], scale)[0] for k in (0, 1)]
    torch.testing.assert_close(both, sum(each) / 2, **EXACT)


# L3


def test_a_margin_of_minus_infinity_masks_every_negative_but_never_the_positive() -> None:
    relation = relation_of(mixed())
    loss, _, gradients = whole(Masked(margin=-inf, query_query=True, doc_doc=True), relation, vectors(relation))
    assert float(loss) == 0 and not any(g.any() for g in gradients)
    assert value(Masked(margin=-0.5), [0.3, 0.2, -0.9]) == pytest.approx(log(1 + exp(10 * -1.2)), rel=1e-12)


def test_a_negative_is_masked_beyond_the_margin_and_not_at_it() -> None:
    assert value(Masked(margin=0.25), [0.5, 0.75, 0.751]) == pytest.approx(log(1 + exp(10 * 0.25)), rel=1e-12)
    assert value(Masked(margin=0.1), [0.5, 0.59, 0.61]) == pytest.approx(log(1 + exp(10 * 0.09)), rel=1e-12)
    assert pulls(Masked(margin=0.1), [0.5, 0.59, 0.61])[2] == 0


def test_a_copy_of_the_right_document_is_a_column_removed() -> None:
    examples = [*plain(3), row("q3", "d0", "d1")]
    query, docs, scale = vectors(relation_of(examples))
    cosine = query @ docs.T
    wrong = [[1, 2, 4], [0, 2, 3], [0, 1, 3, 4], [1, 2, 4]]  # d0 stands in columns 0 and 3, d1 in 1 and 4
    right = [0, 1, 2, 3]
    expected = sum(
        torch.logsumexp(scale * cosine[i, [right[i], *columns]], 0) - scale[0] * cosine[i, right[i]]
        for i, columns in enumerate(wrong)
    )
    torch.testing.assert_close(ours(Masked(margin=inf), examples, query, docs, scale)[0], expected, **EXACT)


@pytest.mark.parametrize(("query_query", "doc_doc"), [(True, False), (False, True), (True, True)])
def test_the_terms_among_queries_and_among_documents_are_further_negatives(query_query: bool, doc_doc: bool) -> None:
    query, docs, scale = vectors(relation_of(plain(9)))
    off = torch.eye(9, dtype=torch.bool)
    blocks = [scale * query @ docs.T]
    blocks += [(scale * query @ query.T).masked_fill(off, -inf)] if query_query else []
    blocks += [(scale * docs @ docs.T).masked_fill(off, -inf)] if doc_doc else []
    expected = F.cross_entropy(torch.cat(blocks, 1), torch.arange(9), reduction="sum")
    o = Masked(margin=inf, query_query=query_query, doc_doc=doc_doc, tile=4)
    loss = ours(o, plain(9), query, docs, scale)[0]
    torch.testing.assert_close(loss, expected, **EXACT)
    wanted = torch.autograd.grad(expected, [query, docs, scale])
    torch.testing.assert_close(torch.autograd.grad(loss, [query, docs, scale]), wanted, **EXACT)


def test_queries_that_share_a_right_answer_do_not_push_each_other() -> None:
    examples = [row("q0", "d0"), row("q1", "d0"), row("q2", "d2")]
    query, docs, scale = vectors(relation_of(examples))
    o = Masked(margin=inf, query_query=True)
    (before,) = torch.autograd.grad(ours(o, examples, query, docs, scale)[0], [query])
    moved = query.detach().clone().requires_grad_()
    moved.data[1] = F.normalize(torch.ones(5, dtype=torch.float64), dim=0)
    (after,) = torch.autograd.grad(ours(o, examples, moved, docs, scale)[0], [moved])
    assert not torch.allclose(after[2], before[2])  # query 2 feels that query 1 has moved
    only = [row("q0", "d0"), row("q1", "d0")]
    alone, _, gradients = whole(o, relation_of(only), [query[:2], docs[:2], scale])
    assert float(alone) == 0 and not any(g.any() for g in gradients)


def test_a_query_that_is_the_right_answer_of_another_is_not_pushed_by_it() -> None:
    examples = [row("q0", "q1"), row("q1", "d1"), row("q2", "d2")]
    query, docs, scale = vectors(relation_of(examples))
    among, cosine = scale * query @ query.T, scale * query @ docs.T
    logits = [
        [cosine[0, 0], cosine[0, 1], cosine[0, 2], among[0, 2]],  # not among[0, 1]
        [cosine[1, 1], cosine[1, 2], among[1, 2]],  # nor document 0, which is query 1 itself, nor query 0
        [cosine[2, 2], cosine[2, 0], cosine[2, 1], among[2, 0], among[2, 1]],
    ]
    expected = sum(torch.stack(seen).logsumexp(0) - seen[0] for seen in logits)
    loss = ours(Masked(margin=inf, query_query=True), examples, query, docs, scale)[0]
    torch.testing.assert_close(loss, expected, **EXACT)


# L5


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_gradient_is_infonce_s_times_its_factor(gamma: float) -> None:
    cosines = [0.4, 0.35, 0.1, -0.2]
    p = exp(-value(Plain(), cosines))
    plain_pull = pulls(Plain(), cosines)
    held = (1 - p) ** gamma
    free = held - gamma * p * (1 - p) ** (gamma - 1) * log(p)
    assert value(Focal(gamma=gamma), cosines) == pytest.approx(-held * log(p), rel=1e-12)
    assert pulls(Focal(gamma=gamma), cosines) == pytest.approx([held * g for g in plain_pull], rel=1e-11)
    free_pull = pulls(Focal(gamma=gamma, detached=False), cosines)
    assert free_pull == pytest.approx([free * g for g in plain_pull], rel=1e-11)


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_that_is_surely_right_has_no_nan(detached: bool, dtype: torch.dtype) -> None:
    examples, operands = at_cosines([1.0, -1.0, -1.0], scale=1000.0)
    operands = [t.detach().to(dtype).requires_grad_() for t in operands]
    loss, _, gradients = whole(Focal(gamma=0.5, detached=detached), relation_of(examples), operands)
    assert float(loss) == 0 and not any(g.any() for g in gradients)


# L6


def test_hard_negatives_pull_as_their_weights_say_and_the_weight_is_a_constant() -> None:
    cosines, alpha, scale = [0.4, 0.35, 0.1], 9.0, 10.0
    terms = [exp(scale * c + (alpha * c if i else 0)) for i, c in enumerate(cosines)]
    got = pulls(Hardness(alpha=alpha), cosines, scale)
    assert got[1:] == pytest.approx([scale * t / sum(terms) for t in terms[1:]], rel=1e-12)
    assert value(Hardness(alpha=alpha), cosines, scale) == pytest.approx(log(sum(terms) / terms[0]), rel=1e-12)
    _, operands = at_cosines(cosines, scale)
    cosine = operands[0] @ operands[1].T
    attached = torch.cat([scale * cosine[:, :1], (scale + alpha) * cosine[:, 1:]], 1)
    (free,) = torch.autograd.grad(-attached.log_softmax(1)[0, 0], cosine)
    assert (free[0, 1:] / torch.tensor(got[1:])).tolist() == pytest.approx([1 + alpha / scale] * 2, rel=1e-6)


# L7


def test_focal_infonce_squares_cosines_and_is_infonce_at_zero_and_one() -> None:
    scale, m = 8.0, 0.3
    expected = log(1 + (exp(scale * 0.2 * 0.5) + exp(scale * -0.1 * 0.2)) / exp(scale * 0.36))
    assert value(FocalInfoNCE(margin=m), [0.6, 0.2, -0.1], scale) == pytest.approx(expected, rel=1e-12)
    ends = [1.0, 0.0, 1.0, 0.0]
    assert value(FocalInfoNCE(margin=0.0), ends) == pytest.approx(value(Plain(), ends), rel=1e-12)
    # s (s + m) turns at -m / 2: what is farther than that is drawn nearer
    got = pulls(FocalInfoNCE(margin=m), [0.6, -0.1, -0.2], scale)
    assert got[1] > 0 > got[2]


def test_diht_weights_add_up_to_the_number_of_negatives_and_flow_only_if_asked() -> None:
    cosines, beta, a, scale = [0.4, 0.35, 0.1, -0.3], 3.0, 0.95, 10.0
    tilt = [exp(beta * c) for c in cosines[1:]]
    weights = [3 * t / sum(tilt) for t in tilt]
    terms = [w * exp(scale * c) for w, c in zip(weights, cosines[1:], strict=True)]
    total = a * exp(scale * cosines[0]) + sum(terms)
    for detached in (True, False):
        o = DiHT(a=a, beta=beta, detached=detached)
        assert value(o, cosines, scale) == pytest.approx(log(total) - scale * cosines[0], rel=1e-12)
    held = pulls(DiHT(a=a, beta=beta, detached=True), cosines, scale)
    assert held[1:] == pytest.approx([scale * t / total for t in terms], rel=1e-12)
    mean = [beta * (t - w / 3 * sum(terms)) / total for t, w in zip(terms, weights, strict=True)]
    free = pulls(DiHT(a=a, beta=beta), cosines, scale)
    assert free[1:] == pytest.approx([h + more for h, more in zip(held[1:], mean, strict=True)], rel=1e-11)


@pytest.mark.parametrize("by", ["weight", "temperature"])
def test_soft_cse_is_infonce_where_every_cosine_is_one_over_the_count(by: Any) -> None:
    cosines = [0.8, 0.25, 0.25, 0.25, 0.25]
    assert value(SoftCSE(by=by), cosines) == pytest.approx(value(Plain(), cosines), rel=1e-12)
    assert pulls(SoftCSE(by=by), cosines) == pytest.approx(pulls(Plain(), cosines), rel=1e-12)
    assert (
        pulls(SoftCSE(by=by, detached=False), cosines)[1] < pulls(Plain(), cosines)[1]
    )  # what is like the query is pushed less


@pytest.mark.parametrize("by", ["weight", "temperature"])
def test_soft_cse_takes_one_negative_alone_and_one_that_is_the_query(by: Any) -> None:
    factor = 1 - 0.2
    term = factor * exp(10 * 0.2) if by == "weight" else exp(10 * 0.2 * factor)
    assert value(SoftCSE(by=by), [0.6, 0.2]) == pytest.approx(log(1 + term / exp(6)), rel=1e-12)
    examples, operands = at_cosines([0.6, 1.0, 0.1])
    loss, _, gradients = whole(SoftCSE(by=by), relation_of(examples), operands)
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients)


# L21


def test_progressive_weights_add_up_and_follow_the_power_of_the_loss() -> None:
    losses = torch.tensor([0.0, 1.0, 4.0, 0.25], dtype=torch.float64)
    for kappa in (-2.0, -0.5, 0.0, 0.5, 3.0):
        weights = Progressive(InfoNCE(), kappa=kappa, floor=0.0).weights(losses, CLOCK)
        assert float(weights.sum()) == pytest.approx(4, rel=1e-12)
        assert float(weights[0]) == 1
        assert (weights[2] / weights[1]).item() == pytest.approx(4**kappa, rel=1e-12)
    ramp = Progressive(InfoNCE(), kappa=Ramp(-1.0, 1.0))
    for progress, kappa in ((0.0, -1.0), (0.5, 0.0), (1.0, 1.0)):
        clock = Clock(step=0, progress=progress, seed=0)
        wanted = Progressive(InfoNCE(), kappa=kappa).weights(losses, CLOCK)
        assert torch.equal(ramp.weights(losses, clock), wanted)
    bare = Progressive(InfoNCE(), kappa=-8.0, floor=0.0)
    assert bare.weights(torch.tensor([1e-38, 1e38]), CLOCK).isfinite().all()


def test_one_row_that_is_learned_does_not_take_the_weight_of_a_batch() -> None:
    losses = torch.cat([torch.full((62,), 0.5), torch.tensor([1e-12, 2.0])])
    alone = Progressive(InfoNCE(), kappa=-0.5, floor=0.0).weights(losses, CLOCK)
    assert float(alone[-2]) > 63.9
    weights = Progressive(InfoNCE(), kappa=-0.5).weights(losses, CLOCK)
    mean = float(losses.mean())
    assert float(weights.sum()) == pytest.approx(64, rel=1e-6)
    assert float(weights[-2] / weights[0]) == pytest.approx((0.1 * mean / 0.5) ** -0.5, rel=1e-5)
    with pytest.raises(ValueError, match="floor=2"):
        Progressive(InfoNCE(), floor=2)


def test_progressive_gradients_are_those_of_each_query_times_its_weight() -> None:
    """Rows of two sources do not meet, so that each is a batch of its own."""
    first, second = [row("q0", "d0", "n0")], [row("q1", "d1", "n1", source="b")]
    query, docs, scale = vectors(relation_of(first + second))
    alone = [
        whole(InfoNCE(), relation_of(e), [query[[i]], docs[2 * i : 2 * i + 2], scale])
        for i, e in enumerate((first, second))
    ]
    losses = torch.stack([loss for loss, _, _ in alone])
    weights = 2 * losses**1.5 / (losses**1.5).sum()
    loss, count, (by_query, by_docs, _) = whole(
        Progressive(InfoNCE(), kappa=1.5), relation_of(first + second), [query, docs, scale]
    )
    assert count == 2
    torch.testing.assert_close(loss, (weights * losses).sum(), **EXACT)
    torch.testing.assert_close(
        by_query, torch.cat([w * g[0] for w, (_, _, g) in zip(weights, alone, strict=True)]), **EXACT
    )
    torch.testing.assert_close(
        by_docs, torch.cat([w * g[1] for w, (_, _, g) in zip(weights, alone, strict=True)]), **EXACT
    )


# All of them


FINITE = {
    "plain": Plain(both=True),
    "masked": Masked(margin=inf, query_query=True, doc_doc=True),
    "masked at a margin": Masked(margin=0.3, query_query=True, doc_doc=True),
    "focal": Focal(detached=False, both=True),
    "focal infonce": FocalInfoNCE(negatives="own"),
    "diht": DiHT(beta=2.0),
    "soft cse": SoftCSE(detached=False, both=True),
    "soft cse, temperature": SoftCSE(by="temperature", negatives="own", detached=False),
}


@pytest.mark.parametrize("objective", FINITE.values(), ids=FINITE)
def test_gradients_equal_finite_differences(objective: Any) -> None:
    """Of those whose weights are no constants: the gradients of the weights flow, unlike through `.item()`."""
    examples = mixed(13)
    operands = vectors(relation_of(examples), dim=3)
    o = replace(objective, tile=3)
    assert torch.autograd.gradcheck(lambda *t: ours(o, examples, *t)[0], operands, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Plain(negatives="hard"), "Plain: negatives='hard'; expected one of shared, own"),  # type: ignore[arg-type]
        (lambda: Masked(tile=0), "Masked: tile=0"),
        (lambda: Focal(both=True, in_batch=False), "Focal: both=True with in_batch=False"),
        (lambda: Masked(margin=float("nan")), "margin=nan"),
        (lambda: Masked(query_query=True, in_batch=False), "in_batch=False"),
        (lambda: Focal(gamma=-1.0), "gamma=-1.0"),
        (lambda: Focal(gamma=Ramp(1.0, -1.0)), "expected 0"),
        (lambda: Hardness(alpha=inf), "alpha=inf"),
        (lambda: FocalInfoNCE(margin=inf), "margin=inf"),
        (lambda: DiHT(a=0.0), "a=0.0"),
        (lambda: DiHT(beta=inf), "beta=inf"),
        (lambda: SoftCSE(by="scale"), "expected one of weight, temperature"),  # type: ignore[arg-type]
        (lambda: Progressive(Progressive(InfoNCE())), "expected InfoNCE or a row-wise objective"),  # type: ignore[arg-type]
        (lambda: Progressive(InfoNCE(), kappa=inf), "kappa=inf"),
    ],
)
def test_a_wrong_option_is_refused_with_words(made: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made()


def test_a_method_that_gives_another_shape_is_named() -> None:
    class Twice(Plain):
        def losses(self, seen: Seen) -> Tensor:
            return super().losses(seen)[:, None]

    with pytest.raises(ValueError, match=r"Twice.losses gave a loss of shape \(3, 1\) for 3 rows"):
        ours(Twice(), plain(3), *vectors(relation_of(plain(3))))


# The same losses elsewhere


@pytest.fixture(scope="module")
def theirs() -> Any:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers import losses

    return losses


def columns(docs: Tensor, negatives: int) -> list[Tensor]:
    """Documents of rows with one positive each and so many hard negatives, as columns."""
    return [docs[k :: negatives + 1] for k in range(negatives + 1)]


@pytest.mark.parametrize(
    ("objective", "options", "negatives"),
    [
        (Plain(), {}, 2),
        (Hardness(alpha=5.0), {"hardness_mode": "all_negatives", "hardness_strength": 5.0}, 2),
        (Masked(margin=inf, query_query=True), {"directions": ("query_to_doc", "query_to_query")}, 2),
        (Masked(margin=inf, doc_doc=True), {"directions": ("query_to_doc", "doc_to_doc")}, 0),
        (Plain(both=True), {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}, 0),
    ],
    ids=["hard negatives", "hardness", "queries against queries", "documents against documents", "both ways"],
)
def test_it_is_the_loss_of_sentence_transformers(theirs: Any, objective: Any, options: Any, negatives: int) -> None:
    examples = [row(f"q{i}", f"d{i}", " ".join(f"n{i}.{k}" for k in range(negatives))) for i in range(11)]
    query, docs, scale = vectors(relation_of(examples))
    loss = theirs.MultipleNegativesRankingLoss(None, scale=7.0, **options)
    if not hasattr(loss, "compute_loss_from_embeddings"):
        pytest.skip("this sentence-transformers computes its loss from texts alone")
    wanted = 11 * loss.compute_loss_from_embeddings([query, *columns(docs, negatives)], torch.zeros(11))
    got = ours(objective, examples, query, docs, scale)[0]
    torch.testing.assert_close(got, wanted, **EXACT)
    by_docs = [torch.autograd.grad(x, [docs])[0] for x in (got, wanted)]
    along = [g - (g * docs).sum(1, keepdim=True) * docs for g in by_docs]  # theirs normalises once more
    torch.testing.assert_close(*along, **EXACT)


def test_the_code_of_the_documentation_runs_and_its_objective_is_short_and_learns() -> None:
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    (own,) = (block for block in blocks if "class Hinge(Rowwise)" in block)
    assert len(own.splitlines()) <= 20
    relation = relation_of(mixed())
    loss, count, gradients = whole(names["Hinge"](both=True), relation, vectors(relation))
    assert count == 22 and float(loss) > 0
    assert all(g.any() for g in gradients[:2])


def test_the_step_divides_by_the_count_and_weighs_by_the_schedule() -> None:
    relation = relation_of(mixed())
    query, docs, scale = (t.detach() for t in vectors(relation))
    both = torch.cat([query, docs])
    owners = Owners.of(Group(), [torch.arange(len(both))], both.device)
    good, clock = torch.ones(len(query), dtype=torch.bool), Clock(step=0, progress=0.5, seed=0)
    for o in (Masked(weight=Ramp(0.0, 1.0), query_query=True), Progressive(InfoNCE(), weight=0.5)):
        bound = Bound("all", (o,), frozenset({0, 1}))
        found = batch_loss(both, {}, scale, relation, good, (bound,), clock, owners)
        leaves = [t.clone().requires_grad_() for t in (query, docs, scale)]
        out = o.contrast(*leaves[:2], relation, leaves[2], clock)
        loss = 0.5 * out.sum / out.count
        assert found.loss == pytest.approx(float(loss.detach()), rel=1e-12)
        by = torch.autograd.grad(loss, leaves)
        torch.testing.assert_close(found.d_own, torch.cat(by[:2]), **EXACT)
        torch.testing.assert_close(found.d_scale, by[2], **EXACT)


def test_every_case_is_a_frozen_value() -> None:
    for case in CASES.values():
        assert case(tile=3) == case(tile=3)
        assert len({case(tile=3), case(tile=3), case(tile=4)}) == 2
