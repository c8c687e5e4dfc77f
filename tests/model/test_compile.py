"""Compiled blocks: the same numbers, with checkpointing, packed rows of many lengths and LoRA; compiled once."""

from collections import Counter

import pytest
import torch
import torch._dynamo
from omni2vec.model.compile import compiled
from omni2vec.model.lora import Lora, attach

from .small import mixed, tiny


def make(lora=False, kind="qwen2_vl"):
    embedder = tiny(kind)
    torch.manual_seed(0)
    return (attach(embedder, Lora(rank=4)) if lora else embedder).train()


def row(embedder, seed, count):
    prompts = embedder.prompts(mixed(count, seed, video=False))
    return embedder.format.collate(prompts, [embedder.limits] * len(prompts))


def step(embedder, inputs):
    vectors = embedder(inputs).vectors
    (vectors[0] * vectors[1]).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in embedder.parameters() if p.grad is not None])
    embedder.zero_grad(set_to_none=True)
    return vectors.detach(), gradient


def checkpointing(embedder):
    model = embedder.base.model
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        enable({"use_reentrant": False})
    if getattr(model, "_require_grads_hooks", None) or getattr(model, "_require_grads_hook", None):
        model.disable_input_require_grads()


def same(plain, fast, inputs, limit):
    (vectors, gradient), (got, slope) = step(plain, inputs), step(fast, inputs)
    assert (got - vectors).abs().max() < limit
    assert (slope - gradient).norm() < limit * gradient.norm()


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs():
    return torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)


def breaks():
    return Counter(torch._dynamo.utils.counters["graph_break"])


def test_compiled_blocks_give_the_same_vectors_and_gradients_for_rows_of_any_length():
    plain, fast = make(lora=True), compiled(make(lora=True), "aot_eager")
    same(plain, fast, row(plain, 0, 4), 1e-5)
    first = graphs()
    assert first >= 6  # norms and feed-forward maps of the tower's blocks and the decoder's
    for seed in range(1, 5):
        same(plain, fast, row(plain, seed, 4 + seed), 1e-5)
    assert graphs() == first and not breaks()


def test_blocks_stay_compiled_under_activation_checkpointing():
    plain, fast = make(), compiled(make(), "aot_eager")
    for embedder in (plain, fast):
        checkpointing(embedder)
    calls = []
    hook = fast.base.model.model.language_model.layers[0].mlp.act_fn.register_forward_hook(
        lambda *_: calls.append(torch.compiler.is_compiling())
    )
    same(plain, fast, row(plain, 0, 4), 1e-5)
    hook.remove()
    assert graphs() >= 6 and not breaks()
    assert all(calls)  # traced, and never run as plain Python: neither in the forward nor in the recomputation


def test_what_is_saved_does_not_change(tmp_path):
    plain, fast = make(), compiled(make(), "eager")
    assert list(plain.state_dict()) == list(fast.state_dict())
    assert plain.digest == fast.digest


@pytest.mark.slow
def test_generated_kernels_give_the_same_numbers(request):
    if "slow" not in request.config.option.markexpr:
        pytest.skip("a minute of C++ on two cores; run with -m slow")
    plain, fast = make(True), compiled(make(True))
    for seed in range(3):
        same(plain, fast, row(plain, seed, 4 + seed), 1e-4)
