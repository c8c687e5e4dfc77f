"""What tests/train/test_zero.py runs on two ranks: zero_cases.py STAGE. Says a number for each case.

Chunks are fed to the engine by hand, with a fixed gradient for every vector; one process with the whole batch, plain
autograd and torch's AdamW is what all of it must equal.
"""

import dataclasses
import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from omni2vec.data.types import Item, Prompted
from omni2vec.train.engine import Local
from omni2vec.train.fragments import Piece
from omni2vec.train.gather import Group
from omni2vec.train.optim import AdamW
from omni2vec.train.precision import LossScale
from omni2vec.train.zero import Zero
from omni2vec.train.zero_engine import engine_of

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from ranks import say
from toy import embedder, tokens_of  # noqa: F401

ADAM = AdamW(lr=0.01, eps=0.1)  # a larger eps: at 1e-8, round-off of a gradient of 0 is a whole step
STEPS = 3
WORDS = [("#" if i % 2 else "") + "abcdefghij"[: 3 + i % 7] + chr(97 + i) for i in range(16)]
PROMPTS = [
    Prompted(Item.text(w), "query", answer="yes no"[: i % 6] if i % 5 == 0 else "", key=str(i))
    for i, w in enumerate(WORDS)
]


def next_token(logits, labels):
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)


TERMS = {"said": (frozenset({0}), next_token)}


@dataclasses.dataclass
class Work:
    """A rank's chunks: prompts by number, and the gradients of their vectors."""

    chunks: list
    gradient: torch.Tensor


def work(group, chunks, width, prompts=PROMPTS):
    """An uneven share: rank 0 has 10 of 16, the other the rest. Every chunk has a pictured row."""
    numbers = list(range(len(prompts)))
    mine = numbers if group.size == 1 else (numbers[:10] if group.rank == 0 else numbers[10:])
    size = math.ceil(len(mine) / chunks)
    parts = [mine[i * len(mine) // chunks : (i + 1) * len(mine) // chunks] for i in range(chunks)] if size else []
    torch.manual_seed(1)
    return Work(parts, torch.randn(len(prompts), width))


def root_of(encoded, gradient, last):
    root = (encoded.vectors * gradient).sum()
    for value, _ in encoded.local.values():
        root = root + 0.1 * value
    return root + (encoded.scale * 0.02).sum() * float(last)


def step(engine, job, mode, at, spoil=False):
    """One step in one of three ways: graphs kept whole, kept at block boundaries, or run again."""
    model, rank = engine.embedder, engine.group.rank
    inputs = [model.format.collate([PROMPTS[i] for i in c], model.limits) for c in job.chunks]
    engine.checkpointing(mode != "all")
    if mode == "replay":
        with engine.autocast(), torch.no_grad():
            for x in inputs:
                engine.embed(x, TERMS)
        graphs = [None] * len(inputs)
    else:
        with engine.autocast():
            graphs = [engine.embed(x, TERMS) for x in inputs]
    with engine.accumulating():
        for i, (graph, x, numbers) in enumerate(zip(graphs, inputs, job.chunks, strict=True)):
            encoded = engine.embed(x, TERMS) if graph is None else graph
            last = rank == 0 and i == len(inputs) - 1
            root = root_of(encoded, job.gradient[numbers], last)
            if spoil and rank == engine.group.size - 1 and i == 0:
                root = root * math.nan
            engine.backward(root)
    return engine.update(at, STEPS)


def fresh(precision="fp32", clip=0.0, zero=None, group=None, seed=0):
    return engine_of(embedder(dtype=torch.float32, seed=seed), ADAM, precision, clip, group or Group(), zero)


def trained(engine, chunks, mode, steps=STEPS):
    done = [step(engine, work(engine.group, chunks, engine.embedder.width), mode, at) for at in range(steps)]
    return engine.whole(), done


def difference(found, wanted, start):
    """Largest difference of a weight, over the largest step that any weight took."""
    if not found:
        return 0.0
    moved = max(float((wanted[k] - start[k]).abs().max()) for k in wanted)
    return max(float((found[k] - wanted[k]).abs().max()) for k in wanted) / moved


def shared(value):
    """Rank 0's number on all ranks."""
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def exactness(group, zero, start):
    """Each way of running the chunks against one process with the whole batch in one chunk."""
    wanted, done = trained(fresh(), 1, "all")
    out = {"norms": [d.norm for d in done]}
    for reduce in ("step", "chunk") if zero.stage in (2, 3) else ("step",):
        for mode in ("all", "boundaries", "replay"):
            for chunks in (1, 3) if mode == "boundaries" else (3,):
                engine = fresh(zero=dataclasses.replace(zero, reduce=reduce), group=group)
                found, done = trained(engine, chunks, mode)
                out[f"{reduce} {mode} {chunks}"] = difference(found, wanted, start)
                out["norm difference"] = max(abs(a / b.norm - 1) for a, b in zip(out["norms"], done, strict=True))
    clipped, _ = trained(fresh(clip=0.5), 1, "all")
    found, _ = trained(fresh(clip=0.5, zero=zero, group=group), 3, "boundaries")
    out["clipped"] = difference(found, clipped, start)
    out["clip matters"] = difference(wanted, clipped, start)
    return out


CASES = {"exactness": exactness}


def main(stage):
    dist.init_process_group("gloo")
    group = Group.current()
    zero = Zero(stage, persistence_threshold=0) if stage == 3 else Zero(stage)
    start = {k: v.clone() for k, v in embedder(dtype=torch.float32).state_dict().items()}
    say({name: case(group, zero, start) for name, case in CASES.items()})
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]))
