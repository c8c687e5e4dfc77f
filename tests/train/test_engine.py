"""The Local engine: what an update leaves alone, what it puts back, and in which precision weights are held."""

import math

import pytest
import torch
from omni2vec.data.types import Clock, Prompted
from omni2vec.model.embedder import freeze
from omni2vec.model.lora import Lora, attach
from omni2vec.train.engine import Local
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW
from omni2vec.train.precision import LossScale
from omni2vec.train.step import Bound, cached_step

from ..model.small import mixed, tiny
from .toy import embedder, loader, rows

BOUNDS = (Bound("default", (InfoNCE(),), frozenset({0})),)


def test_a_learned_scale_comes_down_again_from_its_maximum():
    model = embedder()
    engine = Local(model, AdamW(lr=0.1))
    model.log_scale.grad = -torch.ones_like(model.log_scale)
    with torch.no_grad():
        model.log_scale.fill_(math.log(99.0))
    engine.update(0, 2)  # would bring it to 109
    assert float(model.scale.detach()) == pytest.approx(100.0)
    model.scale.sum().backward()
    assert model.log_scale.grad > 0
    for step in range(20):
        model.log_scale.grad = torch.ones_like(model.log_scale)
        engine.update(step, 20)
    assert model.scale < 90


def test_a_part_with_a_rate_of_0_gathers_no_gradient():
    model = embedder()
    engine = Local(model, AdamW(rates={"tower": 0.0}))
    assert engine.towers_frozen()
    with loader([rows()]) as batches:
        plan = batches.plan(0)
        cached_step(engine, plan, batches.chunks(plan), BOUNDS, Clock(0, 0.0, 0), "all")
    assert all(p.grad is None for p in model.base.groups()["tower"])
    assert sum(p.grad is not None for p in engine.parameters) > 10


def inputs_of(model):
    prompts = [Prompted(item, "query", key=str(i)) for i, item in enumerate(mixed(6, video=False))]
    return model.format.collate(prompts, [model.limits] * len(prompts))


@pytest.mark.parametrize(("precision", "half"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("how", ["lora", "tower"])
def test_frozen_weights_are_held_in_half_precision_and_vectors_stay_close(precision, half, how):
    def model():
        torch.manual_seed(0)
        made = tiny()
        if how == "lora":
            return attach(made, Lora(rank=4))
        freeze(made, ["tower"])
        return made

    wanted = Local(model(), AdamW()).embed(inputs_of(model())).vectors
    engine = Local(model(), AdamW(), precision)
    frozen = [p for p in engine.embedder.parameters() if not p.requires_grad]
    assert all(p.dtype == torch.float32 for p in engine.parameters)
    halved = sum(p.numel() for p in frozen if p.dtype == half)
    assert halved > 0.95 * sum(p.numel() for p in frozen)
    engine.loss_scale = LossScale(8.0)  # where a step would find it, after some that overflow
    found = engine.embed(inputs_of(engine.embedder))
    assert found.vectors.dtype == torch.float32
    assert float((found.vectors * wanted).sum(-1).detach().min()) > 0.999
    with engine.accumulating():
        engine.backward((found.vectors * torch.randn_like(wanted)).sum())
    assert engine.update(0, 1).applied


def test_trainable_weights_in_half_precision_are_refused_unless_asked_for():
    with pytest.raises(ValueError, match=r"is in half precision.*load the model with dtype float32"):
        Local(embedder(dtype=torch.bfloat16), AdamW(), "bf16")
    engine = Local(embedder(dtype=torch.float32), AdamW(), "bf16-true")
    kinds = {n: p.dtype for n, p in engine.embedder.named_parameters()}
    assert kinds.pop("log_scale") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}
    with pytest.raises(ValueError, match="expected one of 'fp32', 'bf16', 'fp16', 'bf16-true'"):
        Local(embedder(), AdamW(), "half")


def test_the_scale_of_a_float16_loss_is_1_in_every_other_precision():
    assert LossScale.of("fp16").value == 65536
    assert LossScale.of("bf16") == LossScale(1.0) == LossScale(1.0).after(False, "bf16")
    assert LossScale(1.0).after(False, "fp16").value == 1.0
    assert LossScale(8.0, 1999).after(True, "fp16") == LossScale(16.0)


def test_whole_gives_the_state_dict_or_what_is_asked_of_it():
    engine = Local(embedder(), AdamW())
    assert engine.whole().keys() == engine.embedder.state_dict().keys()
    assert list(engine.whole(["log_scale"])) == ["log_scale"]


def test_what_was_saved_of_another_shape_is_refused():
    engine = Local(embedder(), AdamW())
    with pytest.raises(ValueError, match="3 values came for elements 0 to"):
        engine.restore(lambda name, kind, start, stop: torch.zeros(3))
