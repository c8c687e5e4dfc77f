"""The cached step leaves the gradient of the whole batch, for any chunking and any memory plan."""

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.mix import Feed
from omni2vec.data.types import Clock
from omni2vec.train.engine import Local
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.optim import AdamW
from omni2vec.train.step import Bound, cached_step

from .toy import embedder, loader, rows

CLOCK = Clock(0, 0.0, 0)
PLANS = ("all", "boundaries", "offloaded", "vectors")
BOTH = (Bound("default", (InfoNCE(), NextToken(weight=0.3)), frozenset({0})),)


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def stepped(model, budget, memory, bounds=BOTH, sources=None, step=0, **settings):
    sources = sources or [rows()]
    engine = Local(model, AdamW())
    with loader(sources, budget=budget, **settings) as batches:
        plan = batches.plan(step)
        done = cached_step(engine, plan, batches.chunks(plan), bounds, CLOCK, memory, batches.again)
    return done, gradients(model), plan


def whole_batch(model, weight=0.3):
    """The loss by its definition, on one packed row and dense matrices, by plain autograd."""
    with loader([rows()]) as batches:
        plan = batches.plan(0)
        (inputs,) = batches.chunks(plan)
    hidden = model.base.embed(inputs, model.base.towers(inputs), "causal")
    vectors = F.normalize(model.pool(hidden, inputs), dim=-1)
    ordered = torch.empty_like(vectors)
    ordered = ordered.index_copy(0, torch.tensor(plan.chunks[0].entries), vectors)
    relation, q = plan.relation, len(plan.keys)
    logits = model.scale * ordered[:q] @ ordered[q:].T
    known = [set(map(tuple, relation.known_id[relation.known_query == i].tolist())) for i in range(q)]
    ids = list(map(tuple, relation.doc_id.tolist()))
    losses = []
    for i in range(q):
        own = [j for j in range(len(ids)) if relation.owner[j] == i and relation.positive[j]]
        wrong = [j for j in range(len(ids)) if ids[j] not in known[i]]
        losses.append(torch.stack([torch.logsumexp(logits[i, [j, *wrong]], 0) - logits[i, j] for j in own]).mean())
    labelled = inputs.labels >= 0
    said = F.cross_entropy(model.base.logits(hidden[labelled]), inputs.labels[labelled])
    loss = torch.stack(losses).mean() + weight * said
    loss.backward()
    return float(loss), gradients(model)


def assert_same(got, expected, rtol):
    assert set(got) == set(expected)
    scale = max(g.abs().max() for g in expected.values())
    for name, g in expected.items():
        torch.testing.assert_close(got[name], g, rtol=0, atol=float(rtol * scale), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("memory", PLANS)
@pytest.mark.parametrize("budget", [40, 97, 10_000])
def test_chunked_gradient_equals_the_whole_batch_s(memory, budget):
    model = embedder()
    loss, expected = whole_batch(model)
    done, got, plan = stepped(model, budget, memory)
    assert len(plan.chunks) == {40: len(plan.chunks), 97: len(plan.chunks), 10_000: 1}[budget]
    assert budget == 10_000 or len(plan.chunks) > 3
    assert_same(got, expected, 1e-12)
    assert abs(done.loss - loss) < 1e-12
    assert "log_scale" in got and got["log_scale"].abs() > 0


@pytest.mark.parametrize("memory", ["boundaries", "vectors"])
def test_chunked_gradient_equals_the_whole_batch_s_in_float32(memory):
    model = embedder(dtype=torch.float32)
    _, expected = whole_batch(model)
    _, got, _ = stepped(model, 40, memory)
    assert_same(got, expected, 1e-5)


def test_mean_of_chunk_means_would_be_wrong():
    """The ragged answers of the toy rows tell a global count from a mean of per-chunk means."""
    model = embedder()
    _, right, plan = stepped(model, 60, "all", (Bound("default", (NextToken(),), frozenset({0})),))
    engine = Local(model, AdamW())
    with loader([rows()], budget=60) as batches:
        chunks = list(batches.chunks(plan))
    labelled = [c for c in chunks if (c.labels >= 0).any()]
    for inputs in labelled:
        out = engine.embed(inputs, {"n": (frozenset({0}), lambda x, y: (F.cross_entropy(x, y), len(y)))})
        (out.local["n"][0] / len(labelled)).backward()
    wrong = gradients(model)
    apart = max(
        (wrong[n] - right[n]).abs().max() / right[n].abs().max()
        for n in right
        if n in wrong and right[n].abs().max() > 0
    )
    assert apart > 0.05


@pytest.mark.parametrize("memory", ["boundaries", "vectors"])
def test_dropout_masks_are_equal_in_both_passes(memory):
    model = embedder(dropout=0.3)
    torch.manual_seed(1)
    _, kept, _ = stepped(model, 60, "all")
    torch.manual_seed(1)
    _, again, _ = stepped(model, 60, memory)
    assert_same(again, kept, 1e-12)
    torch.manual_seed(2)
    _, other, _ = stepped(model, 60, memory)
    assert max((other[n] - kept[n]).abs().max() for n in kept) > 1e-3


def test_a_chunk_beyond_the_host_budget_is_read_again():
    model = embedder()
    _, expected, plan = stepped(model, 60, "vectors")
    engine = Local(model, AdamW())
    read = []
    with loader([rows()], budget=60) as batches:

        def again(plan, chunk):
            read.append(chunk)
            return batches.again(plan, chunk)

        cached_step(engine, plan, batches.chunks(plan), BOTH, CLOCK, "vectors", again, host_bytes=0)
    assert read == list(range(len(plan.chunks)))
    assert_same(gradients(model), expected, 1e-12)


@pytest.mark.parametrize("memory", PLANS)
def test_a_frozen_tower_runs_once_a_chunk(memory):
    model = embedder()
    for p in model.base.groups()["tower"]:
        p.requires_grad_(False)
    model.base.model.tower_calls = 0
    _, _, plan = stepped(model, 60, memory)
    assert model.base.model.tower_calls == sum("image" in c.towers for c in plan.chunks) > 1


def test_what_a_frozen_tower_gave_is_kept_within_the_host_budget_and_seen_again_beyond_it():
    model = embedder()
    for p in model.base.groups()["tower"]:
        p.requires_grad_(False)
    _, expected, plan = stepped(model, 60, "vectors")
    chunks = sum("image" in c.towers for c in plan.chunks)
    engine = Local(model, AdamW())
    calls = []
    for room in (0, 600):  # bytes; two rows of 16 float64 a picture are 256
        model.base.model.tower_calls = 0
        with loader([rows()], budget=60) as batches:
            cached_step(engine, plan, batches.chunks(plan), BOTH, CLOCK, "vectors", batches.again, host_bytes=room)
        calls.append(model.base.model.tower_calls)
        assert_same(gradients(model), expected, 1e-12)
    assert calls[0] == 2 * chunks
    assert chunks < calls[1] < 2 * chunks


def test_objectives_are_normalised_by_their_own_sources():
    sources = [rows("a", seed=1), rows("b", seed=2)]
    model = embedder()
    split = (
        Bound("first", (InfoNCE(weight=2.0), NextToken(weight=0.5)), frozenset({0})),
        Bound("second", (InfoNCE(),), frozenset({1})),
    )
    done, both, plan = stepped(model, 70, "all", split, sources, sub_batch=4)
    assert set(plan.sources) == {0, 1}
    parts = [stepped(model, 70, "all", (bound,), sources, sub_batch=4)[1] for bound in split]
    total = {n: sum(p[n] for p in parts if n in p) for n in both}
    assert_same(both, total, 1e-12)
    weights = {"first/infonce": 2.0, "first/nexttoken": 0.5, "second/infonce": 1.0}
    assert abs(done.loss - sum(w * done.losses[n] for n, w in weights.items())) < 1e-12


def test_rows_of_another_objective_are_no_negatives():
    sources = [rows("a", seed=1), rows("b", seed=2)]
    model = embedder()
    apart = (Bound("a", (InfoNCE(),), frozenset({0})), Bound("b", (InfoNCE(),), frozenset({1})))
    together = (Bound("ab", (InfoNCE(),), frozenset({0, 1})),)
    one = stepped(model, 70, "all", apart, sources, sub_batch=4)[0]
    two = stepped(model, 70, "all", together, sources, sub_batch=4)[0]
    assert sum(one.losses.values()) / 2 < two.losses["ab/infonce"]


def broken(count=24):
    from dataclasses import replace

    from omni2vec.data.types import Item

    good = rows(count=count, answers=True)
    bad = [replace(r, query=Item.text("#!broken")) if i in (3, 9) else r for i, r in enumerate(good.rows)]
    return replace(good, rows=tuple(bad))


@pytest.mark.parametrize("memory", ["all", "vectors"])
def test_a_row_that_cannot_be_decoded_leaves_the_loss(memory):
    model = embedder()
    source = broken()
    settings = {"feeds": [Feed(source, positives=3, negatives=2)], "batch": 24}
    only = (Bound("default", (InfoNCE(),), frozenset({0})),)
    done, got, _ = stepped(model, 70, memory, only, [source], **settings)
    assert (len(done.failed), done.rows) == (2, 22)
    from dataclasses import replace

    rest = replace(source, rows=tuple(r for i, r in enumerate(source.rows) if i not in (3, 9)))
    settings = {"feeds": [Feed(rest, positives=3, negatives=2)], "batch": 22}
    _, expected, _ = stepped(model, 70, memory, only, [rest], **settings)
    assert_same(got, expected, 1e-12)


def test_a_row_that_cannot_be_decoded_leaves_the_next_token_loss():
    model = embedder()
    source = broken()
    settings = {"feeds": [Feed(source, positives=3, negatives=2)], "batch": 24}
    only = (Bound("default", (NextToken(),), frozenset({0})),)
    _, got, _ = stepped(model, 70, "all", only, [source], **settings)
    from dataclasses import replace

    rest = replace(source, rows=tuple(r for i, r in enumerate(source.rows) if i not in (3, 9)))
    settings = {"feeds": [Feed(rest, positives=3, negatives=2)], "batch": 22}
    _, expected, _ = stepped(model, 70, "all", only, [rest], **settings)
    assert_same(got, expected, 1e-12)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
    model = embedder(dtype=torch.float32)
    engine = Local(model, AdamW(lr=0.1))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    next(iter(model.parameters())).grad = torch.full_like(next(iter(model.parameters())), float("nan"))
    assert not engine.update(0, 10).applied
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    _ = [p.grad for p in model.parameters() if p.grad is not None] == []
    stepped_model = Local(model, AdamW(lr=0.1))
    next(iter(model.parameters())).grad = torch.ones_like(next(iter(model.parameters())))
    assert stepped_model.update(0, 10).applied
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())
