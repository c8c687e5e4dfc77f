"""What a graph keeps is measured, and the plan that fits a budget is chosen."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from omni2vec.data.types import Prompted
from omni2vec.model.lora import Lora, attach
from omni2vec.train.begin import demoted, trials
from omni2vec.train.cost import Coming
from omni2vec.train.engine import Local
from omni2vec.train.gather import Group
from omni2vec.train.memory import Footprint, _container_bytes, allot, budgets, kept_bytes, measure, saved_bytes
from omni2vec.train.offload import Saved, Shelf, of_weight
from omni2vec.train.optim import AdamW
from omni2vec.train.probe import NoRoomError, Trial, footprint, probe, settle
from omni2vec.train.resume import State
from omni2vec.train.trouble import is_out_of_memory
from torch.utils.checkpoint import checkpoint

from ..model.small import mixed, tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


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


PRINT = Footprint(10.0, 1.0)
TOKENS = (100, 100, 50)


@pytest.mark.parametrize(
    ("budget", "host", "device", "expected"),
    [
        (2500, 0, CPU, ("all", "all", "all")),
        (2499, 0, CPU, ("all", "all", "boundaries")),
        (1200, 0, CPU, ("all", "boundaries", "boundaries")),
        (1149, 0, CPU, ("boundaries", "boundaries", "all")),  # 450 more bytes for the short one, not 900
        (250, 0, CPU, ("boundaries", "boundaries", "boundaries")),
        (200, 0, CPU, ("boundaries", "boundaries", "vectors")),
        (160, 900, CPU, ("boundaries", "vectors", "boundaries")),
        (160, 900, CUDA, ("boundaries", "offloaded", "boundaries")),
        (160, 99, CUDA, ("boundaries", "vectors", "boundaries")),
        (0, 160, CUDA, ("offloaded", "vectors", "offloaded")),
        (0, 0, CUDA, ("vectors", "vectors", "vectors")),
    ],
)
def test_each_chunk_gets_what_the_budget_still_buys(budget, host, device, expected):
    plans = allot(PRINT, TOKENS, budget, host, device)
    assert plans == expected
    kept = kept_bytes(PRINT, TOKENS, plans)
    assert kept[0] <= budget
    assert kept[1] <= (host if device.type == "cuda" else 0)


def test_a_larger_budget_recomputes_less_but_for_what_does_not_divide_into_chunks():
    tokens = tuple(torch.randint(10, 200, (12,), generator=torch.Generator().manual_seed(0)).tolist())
    passes = {"vectors": 2, "offloaded": 1, "boundaries": 1, "all": 0}  # forwards beyond the first
    spent = [
        sum(t * passes[p] for t, p in zip(tokens, allot(PRINT, tokens, b, 200, CUDA), strict=True))
        for b in range(0, 15_000, 250)
    ]
    assert spent[-1] == 0
    assert max(b - a for a, b in pairwise(spent)) <= max(tokens)
    assert sorted(spent, reverse=True)[::12] == spent[::12]  # in steps of more than a chunk's graph: never more


def blocks(shelf, x, weights):
    """Checkpointed blocks, as a backbone's: the graph keeps what each is given. Their output and all that was saved."""
    saved = []

    def pack(tensor):
        saved.append((tensor.untyped_storage().data_ptr(), shelf.pack(tensor)))
        return saved[-1][1]

    with torch.autograd.graph.saved_tensors_hooks(pack, shelf.unpack):
        for w in weights:
            x = checkpoint(lambda x, w: x + torch.tanh(x @ w), x, w, use_reentrant=False)
    return x, saved


def test_offloaded_boundaries_give_the_same_gradient_and_hold_no_device_memory():
    torch.manual_seed(0)
    first = torch.randn(256, 64)
    weights = [torch.nn.Parameter(torch.randn(64, 64) / 8) for _ in range(6)]
    shelf = Shelf(CPU)
    x, saved = blocks(shelf, first * weights[0].sum(), weights)
    moved = [(pointer, s) for pointer, s in saved if isinstance(s, Saved)]
    assert len(moved) == 6
    for pointer, s in moved:
        assert s.host.untyped_storage().data_ptr() != pointer
        assert not [v for v in vars(s).values() if isinstance(v, torch.Tensor) and v is not s.host]
    got = torch.autograd.grad(x.square().sum(), weights)
    y = first * weights[0].sum()
    for w in weights:
        y = y + torch.tanh(y @ w)
    want = torch.autograd.grad(y.square().sum(), weights)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_what_is_saved_last_comes_back_first_and_brings_the_two_before_it():
    weight = torch.nn.Parameter(torch.ones(64, 64))
    shelf = Shelf(CPU)
    saved = [shelf.pack(weight * i) for i in range(4)]
    assert torch.equal(shelf.unpack(saved[3]), weight.detach() * 3)
    assert [s.back is not None for s in saved] == [False, True, True, False]
    assert torch.equal(shelf.unpack(saved[3]), weight.detach() * 3)  # a graph may be asked twice
    assert shelf.pack(weight) is weight
    small = (weight * 2)[0]
    assert shelf.pack(small) is small


def saved_by(work):
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        work()
    return found


def test_a_weight_that_autocast_casts_is_told_from_what_is_computed_from_it():
    linear, norm = torch.nn.Linear(64, 96), torch.nn.Parameter(torch.ones(64))
    x = torch.randn(2, 4, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        shapes = {tuple(t.shape): of_weight(t) for t in saved_by(lambda: linear(x * 2))}
        assert shapes == {(8, 64): False, (96, 64): True} or shapes == {(8, 64): False, (64, 96): True}
        again = [t for t in saved_by(lambda: linear.weight[:8] @ x[0].t()) if t.shape == (8, 64)]
        assert [of_weight(t) for t in again] == [False]  # a view is cast anew in every chunk
    assert of_weight(linear.weight) and of_weight(linear.weight.t()) and of_weight(norm[None].expand(4, 64))
    assert not of_weight(linear.weight * 2) and not of_weight(x) and not of_weight(x.to(torch.float64))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_of_an_autocast_chunk_do_not_hold_the_weights(checkpointing):
    model = tiny().train()
    inputs = inputs_of(model, 2)  # so few tokens that the weights would be most of it
    whole, half = (saved_bytes(Local(model, AdamW(), p), inputs, checkpointing) for p in ("fp32", "bf16"))
    assert half < 0.7 * whole


def test_a_cast_weight_stays_on_the_device():
    linear, shelf = torch.nn.Linear(256, 256), Shelf(CPU)
    x = torch.randn(64, 256, requires_grad=True) * 1
    packed = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(shelf.pack(t)) or packed[-1], shelf.unpack),
        torch.autocast("cpu", torch.bfloat16),
    ):
        out = linear(x)
    assert sorted(type(s).__name__ for s in packed) == ["Saved", "Tensor"]
    out.sum().backward()
    assert linear.weight.grad is not None


def hungry(model, room):
    """No memory for a chunk of more than `room` tokens: a failed allocation of torch's own."""
    model.register_forward_pre_hook(
        lambda _, args: torch.empty(1 << 60, dtype=torch.uint8) if len(args[0].ids) > room else None
    )


@pytest.mark.parametrize("memory", ["all", "boundaries", "offloaded", "vectors"])
def test_a_probe_leaves_nothing_but_its_figure(memory):
    model = tiny().train()
    before, weights = torch.get_rng_state(), [p.detach().clone() for p in model.parameters()]
    found = probe(Local(model, AdamW()), inputs_of(model), memory)
    assert found.fits
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_a_probe_sees_at_least_the_gradient_and_the_graph():
    torch.manual_seed(0)
    model = tiny().train()
    engine, inputs = Local(model, AdamW()), inputs_of(model, 64)
    kept = measure(engine, inputs).all * len(inputs.ids)
    peak = probe(engine, inputs, "all").peak
    if not peak:
        pytest.skip("this system does not tell a process's peak")
    assert peak > 0.5 * kept  # freed pages of before are used again, so that not all of it is new


class Sharded(Local):
    lockstep = True


class Two(Group):
    """A rank of two whose other always says what it says."""

    def max_(self, tensor):
        return tensor


def offers_of(chunk, memory="boundaries"):
    return lambda tokens: [(memory, [Trial(lambda: chunk(tokens), memory)])]


def test_a_chunk_that_does_not_fit_is_halved_until_it_does():
    model = tiny().train()
    counts = {tokens: inputs_of(model, n) for tokens, n in ((400, 12), (200, 8), (100, 1))}
    hungry(model, len(counts[200].ids) - 1)
    engine = Local(model, AdamW())
    assert not probe(engine, counts[200], "boundaries").fits
    assert settle(engine, 400, 100, offers_of(counts.__getitem__))[0] == 100
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="out of memory with chunk_tokens=400, which the longest item"):
        settle(engine, 400, 400, offers_of(counts.__getitem__))


def test_plans_that_keep_less_are_tried_before_smaller_chunks():
    model = tiny().train()
    engine, inputs, asked = Local(model, AdamW()), inputs_of(model, 2), []

    def offers(tokens):
        for plan, reserve in (("all", 3 << 60), ("boundaries", 2 << 58), ("vectors", 0 if tokens <= 200 else 1 << 58)):
            asked.append((tokens, plan))
            yield plan, [Trial(lambda: inputs, "all"), Trial(lambda: inputs, plan, reserve)]

    tokens, plan, found = settle(engine, 400, 100, offers)
    assert (tokens, plan, found.fits) == (200, "vectors", True)
    assert asked == [(t, p) for t in (400, 200) for p in ("all", "boundaries", "vectors")]


def test_a_reserve_without_room_is_told_to_all_even_where_forwards_hold_collectives():
    model = tiny().train()
    engine, inputs = Sharded(model, AdamW()), inputs_of(model, 2)
    engine.group = Two(0, 2)
    for short in (Trial(lambda: inputs, "all", 1 << 60), Trial(lambda: inputs, "all", 0, 1 << 60)):
        plans = [("all", [short]), ("vectors", [])]
        assert settle(engine, 400, 100, lambda _, plans=plans: plans)[:2] == (400, "vectors")


def test_what_is_tried_is_how_the_chunk_will_run_beside_what_the_others_keep():
    more = Coming(gradient=7, moments=1000, casts=50)
    state = State(memory="auto", footprint=(10.0, 1.0))
    tokens, plans = (100, 90, 80, 70), ("all", "boundaries", "vectors", "vectors")
    assert list(trials(plans, tokens, state, more)) == [
        (0, "all", 90 + 1000, 1000 + 7),
        (1, "boundaries", 1000 + 1000 + 50, 90 + 7),
        (2, "all", 1000 + 90 + 1000 + 50, 800 + 7),  # replayed with its whole graph
    ]
    fixed = replace(state, memory="vectors")
    assert list(trials(("vectors",) * 2, tokens[:2], fixed, more)) == [(0, "vectors", 1000, 7)]
    fixed = replace(state, memory="all")
    assert list(trials(("all",) * 2, tokens[:2], fixed, more)) == [(0, "all", 900 + 1000, 1000 + 7)]


def test_kept_graphs_are_given_up_before_whole_ones():
    state = State(memory="auto", budgets=(800, 5))
    assert [s.budgets for s in demoted(state)] == [(800, 5), (400, 5), (200, 5), (0, 5)]
    assert [s.memory for s in demoted(state, last=True)] == ["auto"] * 4 + ["vectors"]
    assert list(demoted(replace(state, memory="all"), last=True)) == [replace(state, memory="all")]


def checkpointed(model):
    return any(getattr(m, "gradient_checkpointing", False) for m in model.modules())


def test_what_has_no_room_is_measured_with_fewer_tokens_and_then_with_checkpointing():
    model = tiny().train()
    engine, asked = Local(model, AdamW()), []
    counts = {400: inputs_of(model, 8), 100: inputs_of(model, 1)}

    def chunk(tokens):
        asked.append(tokens)
        return counts[tokens]

    right = measure(engine, counts[100])
    hungry(model, len(counts[400].ids) - 1)
    assert footprint(engine, chunk, 400, 100) == right
    assert asked == [400, 100]
    model.register_forward_pre_hook(lambda m, _: None if checkpointed(m) else torch.empty(1 << 60, dtype=torch.uint8))
    found = footprint(engine, chunk, 400, 100)
    assert found.boundaries == right.boundaries
    assert found.all >= right.all  # a multiple that is on the safe side
    hungry(model, 0)
    with pytest.raises(ValueError, match="stage 'fit': out of memory with chunk_tokens=100, which the longest item"):
        footprint(engine, chunk, 400, 100, stage="fit")


def test_where_nobody_can_be_told_measuring_begins_again_with_the_longest_item_checkpointed():
    model = tiny().train()
    engine, inputs = Sharded(model, AdamW()), inputs_of(model, 1)
    engine.group = Two(0, 2)
    model.register_forward_pre_hook(lambda m, _: None if checkpointed(m) else torch.empty(1 << 60, dtype=torch.uint8))
    with pytest.raises(NoRoomError) as found:
        footprint(engine, lambda _: inputs, 400, 100)
    assert found.value.tokens == 100
    assert footprint(engine, lambda _: inputs, found.value.tokens, 100).boundaries > 0


@pytest.mark.parametrize("gb", [0.0, 2.0])
def test_a_budget_is_half_of_what_nothing_else_will_need(monkeypatch, gb):
    monkeypatch.setattr("omni2vec.train.memory.free_bytes", lambda device: 1000 if device.type == "cpu" else 600)
    given = int(gb * 2**30)
    assert budgets(CPU, gb, 2, 100, 60) == (given or 170, 0)
    assert budgets(CUDA, gb, 2, 100, 60) == (given or 250, 220)
    assert budgets(CUDA, gb, 2, 700, 600) == (given, 0)


def test_another_error_is_raised_as_it_is():
    model = tiny().train()
    model.register_forward_pre_hook(lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        probe(Local(model, AdamW()), inputs_of(model), "all")


def test_where_forwards_hold_collectives_the_rank_without_room_leaves_with_what_to_try_next():
    model = tiny().train()
    inputs = inputs_of(model)
    hungry(model, len(inputs.ids) - 1)
    engine = Sharded(model, AdamW(), group=Group(0, 1))
    with pytest.raises(ValueError, match="which the longest item"):  # one rank has nobody to tell
        settle(engine, 200, 200, offers_of(lambda _: inputs))
    engine.group = Two(0, 2)
    with pytest.raises(NoRoomError) as found:
        settle(engine, 400, 150, offers_of(lambda _: inputs))
    assert found.value.tokens == 200
    assert is_out_of_memory(found.value)
