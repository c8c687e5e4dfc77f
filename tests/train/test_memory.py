"""What a graph keeps is measured, and the plan that fits a budget is chosen."""

import pytest
import torch
from omni2vec.data.types import Prompted
from omni2vec.model.lora import Lora, attach
from omni2vec.train.engine import Local
from omni2vec.train.memory import Footprint, _container_bytes, choose, measure, saved_bytes
from omni2vec.train.optim import AdamW

from ..model.small import mixed, tiny


def inputs_of(model, count=8):
    prompts = [Prompted(i) for i in mixed(count)]
    return model.format.collate(prompts, [model.limits] * count)


def test_boundaries_keep_a_fraction_of_all_activations():
    model = tiny().train()
    engine = Local(model, AdamW())
    found = measure(engine, inputs_of(model))
    assert 0 < found.boundaries < found.all / 2
    # Each of the language model's two blocks is given 64 float32 per token; towers and ends come on top.
    assert found.boundaries > 2 * 64 * 4


def test_measuring_leaves_the_random_state_and_gradients_alone():
    model = tiny().train()
    before = torch.get_rng_state()
    measure(Local(model, AdamW()), inputs_of(model))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_frozen_tower_keeps_nothing():
    free, frozen = tiny().train(), tiny().train()
    for p in [*frozen.base.groups()["tower"], *frozen.base.groups()["projector"]]:
        p.requires_grad_(False)
    inputs = inputs_of(free)
    assert saved_bytes(Local(frozen, AdamW()), inputs, False) < 0.8 * saved_bytes(Local(free, AdamW()), inputs, False)


def test_checkpointing_does_not_run_a_frozen_tower_twice():
    model = attach(tiny(), Lora(rank=2)).train()
    engine = Local(model, AdamW())
    calls = []
    model.backbone.tower.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    engine.checkpointing(True)
    engine.backward(engine.embed(inputs_of(model)).vectors.sum())
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("budget", "device", "expected"),
    [(1000, "cpu", "all"), (999, "cpu", "boundaries"), (99, "cpu", "vectors"), (99, "cuda", "offloaded")],
)
def test_the_fastest_plan_that_fits_is_chosen(budget, device, expected):
    assert choose(Footprint(10.0, 1.0), 100, budget, torch.device(device), 100) == expected


def test_without_room_on_the_host_vectors_alone_are_kept():
    assert choose(Footprint(10.0, 1.0), 100, 99, torch.device("cuda"), 99) == "vectors"


@pytest.mark.parametrize(
    ("most", "used"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_a_container_has_what_its_limit_leaves(tmp_path, most, used):
    (tmp_path / "memory").mkdir()
    assert _container_bytes(tmp_path) is None
    (tmp_path / most).write_text("1000\n")
    (tmp_path / used).write_text("700\n")
    (tmp_path / used).with_name("memory.stat").write_text("anon 600\ninactive_file 50\n")
    assert _container_bytes(tmp_path) == 350
    (tmp_path / most).write_text("max\n")
    assert _container_bytes(tmp_path) is None
