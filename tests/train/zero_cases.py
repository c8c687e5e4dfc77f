"""Run by tests/train/test_zero.py in every rank of a gloo group: zero_cases.py STAGES. Says a number for each case.

Chunks are fed to the engine by hand, with a fixed gradient for every vector. One process with the whole batch in one
chunk is what all of it must equal.
"""

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from omni2vec.data.types import Item, Prompted
from omni2vec.model.embedder import remade
from omni2vec.model.lora import Lora, attach
from omni2vec.model.tokens import with_tokens
from omni2vec.train.gather import Group
from omni2vec.train.objectives.orthogonality import Orthogonality
from omni2vec.train.optim import AdamW
from omni2vec.train.precision import LossScale
from omni2vec.train.zero import Zero
from omni2vec.train.zero_engine import engine_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.model.small import tiny
from tests.ranks import say
from tests.train.toy import embedder

ADAM = AdamW(lr=0.01, eps=0.1)  # a large eps: at 1e-8, round-off of a gradient of 0 is a whole step
STEPS = 3


def next_token(logits, labels):
    return F.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)


@dataclass
class Work:
    """Rows, the gradient of each one's vector, and how they are run. Rank 0 has 10 of 16 rows, the other the rest."""

    prompts: list
    gradient: torch.Tensor
    terms: dict = field(default_factory=dict)
    chunks: int = 1
    mode: str = "all"  # graphs kept whole, kept at block "boundaries", or "replay": run again
    dummy: bool = False  # a chunk without a picture gets the smallest one
    layers: tuple = ()  # inner layers, whose vectors have the gradient in reverse
    states: dict = field(default_factory=dict)

    def run(self, **settings):
        return dataclasses.replace(self, **settings)

    def shares(self, group):
        numbers = list(range(len(self.prompts)))
        mine = numbers if group.size == 1 else numbers[:10] if group.rank == 0 else numbers[10:]
        return [mine[i * len(mine) // self.chunks : (i + 1) * len(mine) // self.chunks] for i in range(self.chunks)]

    def inputs(self, model, numbers):
        prompts = [self.prompts[i] for i in numbers]
        bare = self.dummy and not any(type(p).__name__ == "Image" for x in prompts for p in x.item.parts)
        return model.format.collate(prompts, [model.limits] * len(prompts), ("image",) * bare)


def letters(width=16, pictures=lambda i: i % 2 == 0):
    """Sixteen texts of the toy's, of ragged lengths; answers on two of rank 0's rows alone."""
    torch.manual_seed(1)
    words = [("#" if pictures(i) else "") + "abcdefghij"[: 3 + i % 7] + chr(97 + i) for i in range(16)]
    prompts = [
        Prompted(Item.text(w), "query", answer="yes no" if i in (2, 7) else "", key=str(i)) for i, w in enumerate(words)
    ]
    return Work(prompts, torch.randn(16, width), {"said": (frozenset({0}), next_token)})


def step(engine, work, at, poison=0.0, forget=False):
    """One step. poison: a factor of the last rank's first root, such as nan."""
    model, group, shares = engine.embedder, engine.group, work.shares(engine.group)
    inputs = [work.inputs(model, numbers) for numbers in shares]
    engine.checkpointing(work.mode != "all")
    with engine.autocast(), torch.set_grad_enabled(work.mode != "replay"):
        graphs = [engine.embed(x, work.terms, None, work.layers, work.states) for x in inputs]
    with engine.accumulating():
        for i, numbers in enumerate(shares):
            out = graphs[i]
            if work.mode == "replay":
                out = engine.embed(inputs[i], work.terms, None, work.layers, work.states)
            root = (out.vectors[: len(numbers)] * work.gradient[numbers]).sum()
            root = root + 0 * out.vectors.sum() + sum(0.1 * value for value, _ in out.local.values())
            root = root + sum(value for value, _ in out.states.values())
            root = root + sum((at[: len(numbers)] * work.gradient[numbers].flip(1)).sum() for at in out.at.values())
            root = root + (out.scale * torch.tensor([0.02, 5.0])[: len(out.scale)]).sum() * float(
                group.rank == 0 and i == len(shares) - 1
            )
            if poison and i == 0 and group.rank == group.size - 1:
                root = root * poison
            engine.backward(root)
    return engine.forget() if forget else engine.update(at, STEPS)


def train(engine, work, start=0, steps=STEPS):
    """Norms of the gradients, and the weights on rank 0."""
    norms = [step(engine, work, at).norm for at in range(start, start + steps)]
    return norms, engine.whole()


def difference(found, wanted, start):
    """Largest difference of a weight, over the largest step that any weight took."""
    if not found:
        return 0.0
    moved = max(float((wanted[k] - start[k]).abs().max()) for k in wanted)
    return max(float((found[k] - wanted[k]).abs().max()) for k in wanted) / moved


class Case:
    """A stage's settings on this group, and what one process makes of the toy."""

    def __init__(self, stage, group):
        self.stage, self.group, self.work = stage, group, letters()
        self.zero = Zero(stage, persistence_threshold=0 if stage == 3 else None) if stage else None
        self.start = {k: v.clone() for k, v in embedder(dtype=torch.float32).state_dict().items()}

    def alone(self, clip=0.0, precision="fp32", model=None):
        return engine_of(model or embedder(dtype=torch.float32), ADAM, precision, clip, Group(), None)

    def ranks(self, clip=0.0, precision="fp32", model=None, **zero):
        settings = dataclasses.replace(self.zero, **zero) if self.zero else None
        return engine_of(model or embedder(dtype=torch.float32), ADAM, precision, clip, self.group, settings)

    def saved(self, engine):
        """All ranks' pieces: (name, kind) -> values, and how often each element came."""
        values, counts = {}, {}
        own = [(p.name, p.kind, p.start, p.values.clone(), p.shape) for p in engine.pieces()]
        every = [None] * engine.group.size
        if engine.group.size == 1:
            every = [own]
        else:
            dist.all_gather_object(every, own)
        for name, kind, start, part, shape in (x for rank in every for x in rank):
            size = 1 if kind == "step" else math.prod(shape)
            whole = values.setdefault((name, kind), torch.zeros(size))
            whole[start : start + len(part)] = part
            counts.setdefault((name, kind), torch.zeros(size))[start : start + len(part)] += 1
        return values, counts


def reader(values):
    return lambda name, kind, start, stop: values[name, kind][start:stop]


def exactness(case):
    """Every way of running the chunks, each from the same start: an engine that was restored is as a new one."""
    norms, wanted = train(case.alone(), case.work)
    out = {}
    for reduce in ("step", "chunk") if case.stage in (2, 3) else ("step",):
        engine = case.ranks(reduce=reduce)
        first = reader(case.saved(engine)[0])
        ways = (("boundaries", 3), ("replay", 3), ("all", 3), ("boundaries", 1))
        for mode, chunks in ways if reduce == "step" else ways[:2]:
            engine.restore(first)
            found, weights = train(engine, case.work.run(mode=mode, chunks=chunks))
            out[f"{reduce} {mode} {chunks}"] = difference(weights, wanted, case.start)
            out[f"{reduce} {mode} {chunks} norm"] = max(abs(a / b - 1) for a, b in zip(found, norms, strict=True))
    return out


def clipping(case):
    _, free = train(case.alone(), case.work, steps=1)
    (norm, *_), wanted = train(case.alone(clip=0.3), case.work, steps=1)
    (found, *_), weights = train(case.ranks(clip=0.3), case.work.run(chunks=2), steps=1)
    return {
        "clipped": difference(weights, wanted, case.start),
        "it matters": difference(wanted, free, case.start),
        "norm": abs(found / norm - 1),
    }


def skipping(case):
    """A step that is not finite on one rank, one that is forgotten, and a good one, against the good one alone."""
    out = {}
    for reduce in ("step", "chunk") if case.stage in (2, 3) else ("step",):
        one, many = case.alone(), case.ranks(reduce=reduce)
        work = case.work.run(chunks=2, mode="boundaries")
        for engine in (one, many):
            step(engine, work, 0)
        before = case.saved(many)[0]
        bad = step(many, work, 1, poison=math.nan)
        after = case.saved(many)[0]
        step(many, case.work.run(chunks=3), 1, poison=1e3, forget=True)
        for engine in (one, many):
            step(engine, work, 1)
        out[reduce] = {
            "applied": bad.applied,
            "norm": str(bad.norm),
            "untouched": all(torch.equal(before[k], after[k]) for k in before),
            "next": difference(many.whole(), one.whole(), case.start),
        }
    return out


def without(case):
    """A parameter that gets no gradient in a step (the head, where nothing is said) counts as zero; under ZeRO-1 and 2
    also one that gets none on one rank."""
    out = {}
    for reduce in ("step", "chunk") if case.stage in (2, 3) else ("step",):
        one, many = case.alone(), case.ranks(reduce=reduce)
        for engine in (one, many):
            step(engine, case.work.run(chunks=2), 0)
            step(engine, case.work.run(chunks=2, terms={}), 1)
        out[reduce] = difference(many.whole(), one.whole(), case.start)
    if case.stage < 3:
        work = letters(pictures=lambda i: i < 10)  # rank 1 has none, and runs no tower
        _, wanted = train(case.alone(), work)
        out["a rank without"] = difference(train(case.ranks(), work.run(chunks=2))[1], wanted, case.start)
    return out


def reductions(case):
    """Collectives that carry gradients or norms, at 1 and at 3 chunks."""
    counts = {}

    def counting(owner, name):
        function = getattr(owner, name)

        def counted(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return function(*args, **kwargs)

        setattr(owner, name, counted)
        return lambda: setattr(owner, name, function)

    if case.stage:
        import deepspeed.comm as owner
    else:
        owner = dist
    kinds = ("all_reduce", "reduce", "reduce_scatter_fn", "reduce_scatter_tensor", "all_to_all_single")
    undo = [counting(owner, kind) for kind in kinds if hasattr(owner, kind)]
    out = {}
    for reduce in ("step", "chunk") if case.stage in (2, 3) else ("step",):
        engine = case.ranks(reduce=reduce)
        for chunks in (1, 3):
            counts.clear()
            step(engine, case.work.run(chunks=chunks, mode="boundaries"), 0)
            out[f"{reduce} {chunks}"] = dict(counts)
    for back in undo:
        back()
    return out


def restoring(case):
    """Two steps there, one more here: from this engine to one process, back, and to an engine of another seed."""
    out = {}
    one, many = case.alone(), case.ranks()
    for engine in (one, many):
        train(engine, case.work.run(chunks=2), steps=2)
    values, counts = case.saved(many)
    out["each once"] = all(bool((c == 1).all()) for c in counts.values())
    out["kinds"] = sorted({kind for _, kind in values})
    out["names"] = len({name for name, _ in values})
    single, _ = case.saved(one)
    out["pieces"] = max(float((values[k] - single[k]).abs().max()) for k in single)
    _, wanted = train(one, case.work, start=2, steps=1)
    back = case.alone(model=embedder(dtype=torch.float32, seed=5))
    back.restore(reader(values))
    out["to one process"] = difference(train(back, case.work, start=2, steps=1)[1], wanted, case.start)
    there = case.ranks(model=embedder(dtype=torch.float32, seed=6))
    there.restore(reader(single))
    out["read back"] = all(torch.equal(v, single[k]) for k, v in case.saved(there)[0].items())
    out["from one process"] = difference(train(there, case.work, start=2, steps=1)[1], wanted, case.start)
    if case.stage == 3:  # nothing is partitioned: every parameter is gathered at its end and stays
        whole = case.ranks(model=embedder(dtype=torch.float32, seed=7), persistence_threshold=None)
        whole.restore(reader(single))
        out["to whole parameters"] = difference(train(whole, case.work, start=2, steps=1)[1], wanted, case.start)
    return out


def scales(case):
    """A learned scale stays at its maximum, and comes down again."""
    import omni2vec.model.embedder as of

    model = embedder(dtype=torch.float32)
    model.settings = dataclasses.replace(model.settings, scale=of.Learned(init=8.0, max=8.001))
    engine = case.ranks(model=model)
    work = case.work.run(gradient=case.work.gradient * 0, terms={})

    def push(sign):
        with engine.accumulating():
            out = engine.embed(work.inputs(model, work.shares(case.group)[0]))
            engine.backward(sign * out.scale.sum() + 0 * out.vectors.sum())
        engine.update(0, STEPS)
        return float(engine.embed(work.inputs(model, [0, 1])).scale.detach())

    up = [push(-1.0), push(-1.0)]
    saved = float(case.saved(engine)[0]["log_scale", "weight"].exp())
    return {"up": up, "saved": saved, "down": [push(1.0) for _ in range(4)][-1]}


def precisions(case):
    """What three steps move under each precision, against one process under the same; plain bfloat16 under DeepSpeed
    keeps float32 weights for the optimiser, which are held against a float32 run."""
    out = {}
    for precision in ("bf16", "fp16") if case.stage == 3 else ("bf16", "fp16", "bf16-true"):
        same = "fp32" if precision == "bf16-true" and case.stage else precision
        one, many = case.alone(precision=same), case.ranks(precision=precision)
        if precision == "fp16":
            one.loss_scale = many.loss_scale = LossScale(1024.0, 1990)
        (first, _), (second, _) = case.saved(one), case.saved(many)
        train(one, case.work)
        train(many, case.work.run(chunks=2, mode="boundaries"))
        moved = []
        for engine, begun in ((one, first), (many, second)):
            values = case.saved(engine)[0]
            moved.append(torch.cat([values[k, "weight"] - begun[k, "weight"] for k in case.start]))
        out[precision] = float((moved[1] - moved[0]).norm() / moved[0].norm())
        if precision == "fp16":
            out["good"] = many.loss_scale.good
            bad = step(many, case.work, 0, poison=1e30)
            out["overflow"] = [bad.applied, many.loss_scale.value, many.loss_scale.good]
            many.loss_scale = LossScale(256.0, 1999)
            out["doubled"] = [step(many, case.work, 0).applied, many.loss_scale.value]
            many.loss_scale = LossScale(16.0)
            out["norm"] = step(many, case.work, 0).norm / step(many, case.work, 0).norm
    return out


def trap(case):
    """DeepSpeed left to itself: kept graphs, backward after backward, without coalesce_grad_reduction."""
    _, wanted = train(case.alone(), case.work, steps=1)
    engine = case.ranks(reduce="chunk")
    engine.backward = lambda root: engine._engine.backward(root * case.group.size, scale_wrt_gas=False)
    _, found = train(engine, case.work.run(chunks=3), steps=1)
    return {"kept graphs": difference(found, wanted, case.start) if found else 1.0}


def offloaded(case):
    """Moments in the host's memory (on a CPU: DeepSpeed's path for it); a bad step in between is skipped."""
    _, wanted = train(case.alone(clip=0.3), case.work, steps=2)
    out = {}
    for reduce in ("step", "chunk"):
        engine = case.ranks(clip=0.3, offload_optimizer=True, reduce=reduce)
        train(engine, case.work.run(chunks=2, mode="boundaries"), steps=1)
        out[f"{reduce} applied"] = step(engine, case.work.run(chunks=2), 1, poison=math.nan).applied
        _, found = train(engine, case.work.run(chunks=2, mode="boundaries"), start=1, steps=1)
        out[reduce] = difference(found, wanted, case.start)
    return out


def stepped():
    made = embedder(dtype=torch.float32)
    return remade(made, dataclasses.replace(made.settings, int8=True), None)


def tokened():
    """A small Qwen with two embedding tokens, whose rows learn beside adapters; its head is tied to the table."""
    made = attach(with_tokens(tiny(), 2), Lora(rank=2))
    torch.manual_seed(1)
    for n, p in made.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p, std=0.05)
    return made.train()


def extras(case):
    """Inner layers and a learned step; states of embedding tokens that learn beside adapters."""
    states = {"apart": (frozenset({0}), lambda s: (Orthogonality().states(s).sum, len(s)))}
    works = {"inner": (stepped, case.work.run(layers=(1,)), ("boundaries", "replay"))}
    if case.stage == 3:  # which gathers weights: peft reads the table's outside its module
        states = {"apart": (frozenset({0}), lambda s: (Orthogonality().states(s).sum, len(s)))}
        work = dataclasses.replace(letters(64, lambda i: False), layers=(1,), states=states)
        works["tokens"] = (tokened, work, ("boundaries",))
    out = {}
    for name, (make, work, modes) in works.items():
        start = {k: v.clone() for k, v in make().state_dict().items()}
        _, wanted = train(case.alone(model=make()), work, steps=2)
        for mode in modes:
            _, found = train(case.ranks(model=make()), work.run(chunks=3, mode=mode), steps=2)
            out[f"{name} {mode}"] = difference(found, wanted, start)
        moved = {k for k in wanted if not torch.equal(wanted[k], start[k])}
        out[f"{name} moved"] = sorted(k for k in moved if "log_step" in k or "embed_tokens.token_adapter" in k)
        _, without = train(case.alone(model=make()), work.run(layers=(), states={}), steps=2)
        out[f"{name} matters"] = difference(without, wanted, start)
    return out


CASES = (
    exactness, clipping, skipping, without, reductions, restoring, scales, extras, precisions, trap, offloaded,
)  # fmt: skip
ENOUGH = {0: CASES[:9], 1: CASES[:7], 2: CASES[:9], 3: CASES}  # stages 1 and 2 are one class of DeepSpeed's


def main(stages, *names):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group, out = Group.current(), {}
    for stage in map(int, stages.split(",")):
        case = Case(stage, group)
        out[stage] = {f.__name__: f(case) for f in ENOUGH[stage] if not names or f.__name__ in names}
    say(out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
