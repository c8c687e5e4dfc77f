"""What `plan` says of a stage: held against what an engine then holds, and against the steps themselves."""

import re
from dataclasses import replace

import pytest
from omni2vec.data.shards import write_shards
from omni2vec.data.types import Example, Item
from omni2vec.model.lora import Lora, attach
from omni2vec.train.begin import counter
from omni2vec.train.cost import Coming, Held, coming, held, ranging, spoken, widest
from omni2vec.train.engine import Local
from omni2vec.train.optim import AdamW
from omni2vec.train.preview import estimates
from omni2vec.train.zero import Zero

from ..model.small import mixed, tiny
from .stages import stage
from .toy import loader, rows


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-true"])
@pytest.mark.parametrize("lora", [False, True])
def test_what_is_foretold_is_what_the_engine_holds(precision, lora):
    model = attach(tiny(), Lora(rank=4)) if lora else tiny()
    engine = Local(model.train(), AdamW(), precision)
    trained = sum(p.numel() for p in engine.parameters)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    told = held(trained, frozen, precision, None, 1)
    with engine.accumulating():
        pass
    gradient = sum(p.grad.nbytes for p in engine.parameters)
    engine.update(0, 1)
    states = engine.optimizer.state.values()
    moments = sum(t.nbytes for s in states for k, t in s.items() if k != "step")
    for name, real in (
        ("weights", sum(p.nbytes for p in model.parameters())),
        ("gradient", gradient),
        ("moments", moments),
    ):
        assert getattr(told, name) == pytest.approx(real, rel=1e-3)  # the scale stays float32 in plain bfloat16


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        (None, Held(4500, 4000, 8000)),
        (Zero(stage=1), Held(4500, 4000, 3000)),
        (Zero(stage=2), Held(4500, 4000, 3000)),
        (Zero(stage=3), Held(1125, 4000, 3000)),
        (Zero(stage=3, offload_optimizer=True), Held(1125, 4000, 3000, 3000)),
        (Zero(stage=3, reduce="chunk", bucket_mb=1), Held(1125, 1000 + 4000, 3000)),
    ],
)
def test_zero_divides_what_its_stage_divides(zero, expected):
    assert held(1000, 500, "fp32", zero, 4) == expected
    assert expected.on_device == expected.weights + expected.gradient + expected.moments - expected.on_host


@pytest.mark.parametrize(
    ("precision", "zero", "begun", "expected"),
    [
        ("fp32", None, False, Coming(4000, 8000, 0)),
        ("bf16", None, False, Coming(4000, 8000, 2000)),
        ("bf16", None, True, Coming(4000, 0, 2000)),
        ("bf16-true", None, False, Coming(2000, 4000, 0)),
        ("bf16", Zero(stage=2), False, Coming(4000, 2000, 2000)),  # its float32 weights are there already
        ("bf16-true", Zero(stage=2), False, Coming(2000, 2000, 0)),
        ("bf16", Zero(stage=3), False, Coming(4000, 2000, 0)),
        ("bf16", Zero(stage=3, offload_optimizer=True), False, Coming(4000, 0, 0, 2000)),
        ("bf16", Zero(stage=3, offload_optimizer=True), True, Coming(4000, 0, 0)),
    ],
)
def test_what_is_still_to_come_is_what_no_engine_holds_at_its_start(precision, zero, begun, expected):
    assert coming(1000, precision, zero, 4, begun) == expected
    assert expected.on_device == expected.gradient + expected.moments + expected.casts


def test_a_gradient_reduced_once_a_chunk_needs_its_share_and_a_bucket():
    assert held(1 << 20, 0, "bf16", Zero(stage=2, reduce="chunk", bucket_mb=1), 4).gradient == 2 << 20


def test_the_widest_chunk_of_each_place_counts():
    with loader([rows()], budget=60) as batches:
        plan = batches.plan(0)
    assert widest(plan) == [c.tokens for c in plan.chunks]
    first, second = plan.chunks[::2], plan.chunks[1::2]
    pairs = list(zip(first, second, strict=False))
    shared = replace(plan, chunks=first[: len(pairs)], of_ranks=(first[: len(pairs)], second[: len(pairs)]))
    assert widest(shared) == [max(a.tokens, b.tokens) for a, b in pairs]


def test_bytes_and_ranges_in_words():
    assert [spoken(512), spoken(3 << 20), spoken(5 << 29)] == ["0.5 KiB", "3.0 MiB", "2.5 GiB"]
    assert [ranging([7, 7]), ranging([1000, 3000])] == ["7", "2,000 (1,000 to 3,000)"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cost")
    media = mixed(24)
    made = [Example(f"r/{i}", "r", "retrieval", media[i], (Item.text("blue " * (1 + i % 9)),)) for i in range(24)]
    write_shards(made, path / "rows")
    tiny().save(path / "model")
    return path


def nowhere(step):
    raise AssertionError(f"no step is needed, asked for {step}")


def numbers(text):
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", text)]


def size(text):
    """Bytes, of "1.5 MiB ..."."""
    return numbers(text)[0] * {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[text.split()[1].strip(",")]


def test_tokens_of_the_run_are_those_of_several_steps_with_their_range(folder):
    made = replace(stage(folder, "full"), steps=5)
    found = estimates(made, nowhere)
    with made.loader(made.load(nowhere), nowhere, 1 << 40) as batches:
        real = [batches.plan(step).tokens for step in range(5)]
    assert numbers(found["tokens"]) == [sum(real)]  # so few that all are counted
    assert numbers(found["tokens a step"])[1:3] == [min(real), max(real)]
    assert len(set(real)) > 1
    many = estimates(replace(made, steps=5000), nowhere)
    assert many["tokens"].startswith("about ")
    assert min(real) * 5000 <= numbers(many["tokens"])[0] <= max(real) * 5000


def test_the_figures_of_four_ranks_are_a_quarter_where_they_divide(folder):
    made = replace(stage(folder, "full"), zero=Zero(stage=3))
    one, four = estimates(made, nowhere), estimates(made, nowhere, ranks=4)
    assert size(one["weights"]) == pytest.approx(4 * size(four["weights"]), rel=0.1)
    assert size(one["gradient"]) == size(four["gradient"])  # whole on each, until it is reduced
    assert size(one["moments"]) == pytest.approx(4 * size(four["moments"]), rel=0.1)
    assert size(four["boundaries"]) < 0.5 * size(one["boundaries"])
    assert one["vectors"] + ", on every rank" == four["vectors"]
    assert one["arithmetic"] == four["arithmetic"]


def test_the_arithmetic_of_all_chunks_is_near_that_of_a_few(folder):
    made = replace(stage(folder, "full"), batch=24, chunk_tokens=40)
    model = made.load(nowhere)
    count = counter(model)
    with made.loader(model, nowhere, 40) as batches:
        plan = batches.plan(0)
        assert len(plan.chunks) > 4
        whole = sum(count(inputs) for inputs in batches.chunks(plan))
    told = numbers(estimates(made, nowhere)["arithmetic"])[0] * 1e9
    assert told == pytest.approx(whole, rel=0.3)
