"""Run as a script on several ranks: three steps of an engine, against one process with the whole batch in one chunk.

Gives, by case, how far the weights are from that process's, as a share of how far those have moved.
"""

import os
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import toy
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.types import Clock, Example, Item, Limits
from omni2vec.model.embedder import Learned, freeze, remade
from omni2vec.model.lora import Lora, attach
from omni2vec.model.tokens import with_tokens
from omni2vec.train.gather import Group
from omni2vec.train.loss import Bound
from omni2vec.train.objectives.above import Above
from omni2vec.train.objectives.at_layer import AtLayer
from omni2vec.train.objectives.cosent import CoSENT
from omni2vec.train.objectives.focal import Focal
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.masked import Masked
from omni2vec.train.objectives.matryoshka import Matryoshka
from omni2vec.train.objectives.mixing import Mixing
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.objectives.orthogonality import Orthogonality
from omni2vec.train.objectives.pearson import Pearson
from omni2vec.train.objectives.progressive import Progressive
from omni2vec.train.objectives.soft_label import SoftLabel
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.step import NoMemoryError, cached_step
from omni2vec.train.trouble import blame
from omni2vec.train.zero import Zero
from omni2vec.train.zero_engine import engine_of
from ranks import say

STEPS = 3
# A large eps: where a gradient is but rounding, AdamW's own first steps would blow it up to a whole step.
ADAM = AdamW(lr=1e-2, eps=1e-3, schedule=Schedule("constant", warmup=0))
BOTH = (InfoNCE(both=True), NextToken(weight=0.3))
EVERY = (
    Matryoshka(Mixing(Masked(query_query=True, doc_doc=True)), dims=(0, 16), weights=(1.0, 0.5)),
    Progressive(Focal(), kappa=0.5, weight=0.3),
    SoftLabel(score="label", weight=0.5),
    CoSENT(weight=0.2),
    AtLayer(Pearson(), weight=0.4),
    AtLayer(Above(InfoNCE(), 0.3), layer=1),
    Orthogonality(),
    NextToken(weight=0.3),
)


@dataclass(frozen=True)
class Case:
    name: str
    memory: object = "boundaries"
    objectives: tuple = BOTH
    rows: str = "ragged"
    model: str = "toy"
    precision: str = "fp32"
    clip: float = 0.5
    budget: int = 60
    reduce: str = "step"
    engines: tuple[str, ...] = ()  # of ENGINES; none: all
    host: int = 1 << 10  # bytes for what the plan "vectors" keeps


CASES = (
    Case("boundaries kept"),
    Case("one picture and one answer in the batch", rows="lonely"),
    Case("run twice", "vectors", engines=("local", "zero 3")),
    Case("mixed plans", ("all", "boundaries", "vectors"), engines=("zero 3",)),
    Case("one way, own negatives", objectives=(InfoNCE(negatives="own"), NextToken()), engines=("local",)),
    Case("many chunks", budget=32, engines=("zero 2",)),
    Case("reduced once a chunk", reduce="chunk", engines=("zero 2", "zero 3")),
    Case("reduced once a chunk, run twice", "vectors", reduce="chunk", engines=("zero 3",)),
    Case("VLM", model="qwen2_vl", rows="pictures", budget=220, engines=("local", "zero 2", "zero 3")),
    Case("VLM, LoRA on a frozen tower", model="lora", rows="pictures", budget=220, engines=("zero 3",)),
    # Room for the towers' outputs of some chunks, and on one rank for more of them than on the other.
    Case(
        "VLM, towers kept in part", "vectors", model="lora", rows="pictures", budget=220, engines=("zero 3",), host=9000
    ),
    Case(
        "VLM, objectives of every kind",
        objectives=EVERY,
        model="tokens",
        rows="graded",
        budget=220,
        engines=("zero 3",),
    ),
    Case("VLM, bf16 autocast", model="qwen3_vl", rows="pictures", budget=220, precision="bf16", engines=("zero 2",)),
)


def source(kind):
    if kind in ("pictures", "graded"):
        from small import mixed

        items = mixed(32, seed=5, video=False)
        rows = tuple(
            Example(f"rows/0/{i}", "rows", "retrieval", items[2 * i], (items[2 * i + 1],),
                    tuple(Item.text(f"wrong {i} {k}") for k in range(i % 3)), answer="a red circle" * (i % 5 == 0),
                    scores={"label": (i % 7 / 7,) * (1 + i % 3)} if kind == "graded" else {})
            for i in range(16)
        )  # fmt: skip
        return toy.ToyRows("rows", rows)
    found = toy.rows(count=36)
    if kind == "lonely":
        plain = [replace(e, query=Item.text(e.query.parts[0].text.removeprefix("#")), answer="") for e in found.rows]
        for i in range(0, len(plain), 12):
            plain[i] = replace(plain[i], query=Item.text("#" + plain[i].query.parts[0].text))
            plain[i + 1] = replace(plain[i + 1], answer="hello")
        found = toy.ToyRows("toy", tuple(plain))
    return found


def embedder_of(kind):
    if kind == "toy":
        return toy.embedder(dtype=torch.float32)
    from small import tiny

    torch.manual_seed(0)
    made = tiny("qwen2_vl" if kind in ("lora", "tokens") else kind)
    if kind == "tokens":
        made = with_tokens(made, 3)
    made = remade(made, replace(made.settings, scale=Learned(init=8.0)), None)
    if kind == "lora":
        made = attach(made, Lora(rank=4))
        torch.manual_seed(1)
        for n, p in made.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(p, std=0.05)
        freeze(made, ("tower", "projector"))
    return made.train()


def trained(case, group, zero=None, whole=False):
    """The weights after the steps, on rank 0, as they were before them, and the losses."""
    rows, embedder = source(case.rows), embedder_of(case.model)
    before = {n: p.detach().clone() for n, p in embedder.named_parameters()}
    engine = engine_of(embedder, ADAM, case.precision, case.clip, group, zero)
    bounds = (Bound("default", case.objectives, frozenset({0})),)
    losses, batch = [], 12
    with Loader(
        [rows], [Feed(rows, positives=3, negatives=2)], embedder.format, Limits(), batch=batch, sub_batch=batch, seed=0,
        budget=1 << 30 if whole else case.budget, stretch=True, ranks=group.ranks, stop=STEPS,
    ) as loader:  # fmt: skip
        for plan, chunks in loader:
            n = len(plan.chunks)
            memory = case.memory if isinstance(case.memory, str) else (case.memory * n)[:n]
            clock = Clock(plan.step, plan.step / STEPS, 0)
            again = loader.again
            done = cached_step(engine, plan, chunks, bounds, clock, memory, again, host_bytes=case.host)
            updated = engine.update(plan.step, STEPS)
            assert updated.applied
            losses.append((done.loss, updated.norm))
    names = [n for n, p in embedder.named_parameters() if n in before]
    return engine.whole(names), before, losses


def part_of(name):
    return "tower" if "visual" in name else "scale" if "log_scale" in name else "language"


def distance(found, wanted, before):
    """(by norm, the worst part's by its own norm, of the largest element against the largest movement)"""
    parts = [[n for n in wanted if part_of(n) == p] for p in ("tower", "language", "scale")]
    each = [ratio(found, wanted, before, names) for names in parts if names]
    largest = max(float((found[n].float() - wanted[n].float()).abs().max()) for n in wanted)
    most = max(float((wanted[n].float() - before[n].float()).abs().max()) for n in wanted)
    return ratio(found, wanted, before, wanted), max(each), largest / most


def ratio(found, wanted, before, names):
    apart = sum(float((found[n].float() - wanted[n].float()).pow(2).sum()) for n in names) ** 0.5
    moved = sum(float((wanted[n].float() - before[n].float()).pow(2).sum()) for n in names) ** 0.5
    return apart / moved if moved else apart


ENGINES = {
    "local": None,
    "zero 1": Zero(1),
    "zero 2": Zero(2),
    "zero 3": Zero(3, persistence_threshold=0),  # at the default, models as small as these are never partitioned
}


def troubled(group, zero):
    """What two ranks make of one that runs out of memory, in either pass, and of one whose vectors are not finite."""
    case, told = CASES[0], {}
    rows, embedder = source(case.rows), embedder_of("toy")
    engine = engine_of(embedder, ADAM, "fp32", case.clip, group, zero)
    bounds = (Bound("default", case.objectives, frozenset({0})),)
    names = [n for n, _ in embedder.named_parameters()]
    before = engine.whole(names)
    embed, backward = engine.embed, engine.backward

    def lacking(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def broken(*args):
        out = embed(*args)
        return replace(out, vectors=out.vectors * float("nan"))

    with toy.loader([rows], budget=case.budget, ranks=group.ranks) as loader:
        plan = loader.plan(0)
        for name in ("embed", "backward"):
            if group.rank == 1:
                setattr(engine, name, lacking)
            try:
                cached_step(engine, plan, loader.chunks(plan), bounds, Clock(0, 0.0, 0))
                told[name] = "went through"
            except NoMemoryError:
                told[name] = "no memory"
            engine.forget()
            engine.embed, engine.backward = embed, backward
        if group.rank == 1:
            engine.embed = broken
        done = cached_step(engine, plan, loader.chunks(plan), bounds, Clock(0, 0.0, 0))
        told["finite"] = done.finite
        engine.forget()
        engine.embed = embed
        told["blame"] = len(blame(done.vectors, done.losses, plan).keys)
        same = engine.whole(names)
        told["kept"] = all(torch.equal(same[n], before[n]) for n in before)
        done = cached_step(engine, plan, loader.chunks(plan), bounds, Clock(0, 0.0, 0))
        told["then"] = done.finite and engine.update(0, STEPS).applied
    return told


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = Group.current()
    results = {}
    for case in (c for c in CASES if os.environ.get("CASE", "") in c.name):
        right, right_losses = None, None
        for name, zero in ENGINES.items():
            if case.engines and name not in case.engines:
                continue
            zero = replace(zero, reduce=case.reduce) if zero else None
            found, before, losses = trained(case, group, zero)
            if group.rank == 0:
                if right is None:
                    right, _, right_losses = trained(case, Group(), whole=True)
                apart = max(
                    abs(a - b) / abs(b)
                    for x, y in zip(losses, right_losses, strict=True)
                    for a, b in zip(x, y, strict=True)
                )
                results[f"{name}: {case.name}"] = [*distance(found, right, before), apart]
    for name in ("local", "zero 2"):
        results[f"{name}: troubled"] = troubled(group, ENGINES[name])
    say(results)
    dist.barrier()


if __name__ == "__main__":
    main()
