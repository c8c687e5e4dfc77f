"""Run as a script in two ranks: what the guards of one rank tell the other.

Rank 1 hangs in a function with a telling name while rank 0 waits for it in a sum; once more, where each has beaten as
often, so that only their stacks tell them apart; a section that is slow by right; then what is agreed on.
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from omni2vec.train.engine import Local
from omni2vec.train.gather import Group
from omni2vec.train.memory import Footprint, agreed
from omni2vec.train.optim import AdamW
from omni2vec.train.probe import Trial, settle
from omni2vec.train.trouble import agree, blame
from omni2vec.train.watchdog import Watchdog

from tests.ranks import say
from tests.train.toy import embedder, loader, rows

CPU = torch.device("cpu")


def decode_a_broken_film(seconds):
    time.sleep(seconds)


def stalls(group, out, same_place):
    heard = []
    with Watchdog(group.rank, group.size, out, limit_s=0.5, every_s=0.1, tell=heard.append) as dog:
        for step in range(3):
            dog.beat(step, "data")
            dog.beat(step, "forward")
            if step == 2 and group.rank == 1 and not same_place:
                decode_a_broken_film(2.5)
            dog.beat(step, "gather")
            if step == 2 and group.rank == 1 and same_place:
                decode_a_broken_film(2.5)
            group.sum_(torch.ones(3))
        stacks = dog.stack_file(group.rank).read_text()
    group.barrier()
    return {"heard": [[list(s.ranks), s.step, s.where, s.text] for s in heard], "stacks": stacks}


def slow(group, out):
    """A section that is allowed to take its time, and a folder that is gone behind it."""
    heard = []
    with Watchdog(group.rank, group.size, out, limit_s=0.3, every_s=0.1, tell=heard.append) as dog:
        dog.beat(0, "evaluate", allow_s=30)
        time.sleep(0.8)
    group.barrier()
    return {"heard": len(heard), "left": sorted(p.name for p in out.iterdir())}


def raised(group):
    before = group.calls.total()
    found = agree(group, CPU, asked=group.rank == 1, full=False, finite=group.rank == 0)
    return found | {"calls": group.calls.total() - before}


def blamed(group):
    """Each rank has half of the entries, in a chunk's order; a vector is broken on rank 1 alone."""
    with loader([rows()]) as batches:
        plan = batches.plan(0)
    entries = torch.arange(group.rank, len(plan.costs), 2).flip(0)
    vectors = torch.ones(len(entries), 4)
    if group.rank == 1:
        vectors[3] = float("nan")
    broken = int(torch.arange(1, len(plan.costs), 2).flip(0)[3])
    return {**blame(vectors, {}, plan, entries, group).event(), "expected": plan.keys[plan.slots[broken][0]]}


def settled(group):
    """Rank 1 has no room for more than 64 tokens; rank 0 has room for all."""
    model = embedder(dtype=torch.float32)
    if group.rank == 1:
        model.register_forward_pre_hook(
            lambda _, args: torch.empty(1 << 60, dtype=torch.uint8) if len(args[0].ids) > 64 else None
        )
    engine, tried = Local(model, AdamW(), group=group), []
    with loader([rows()]) as batches:
        plan = batches.plan(0)
        longest = max(c.tokens for c in plan.costs)

        def chunk(tokens):
            batches.budget = tokens
            tried.append(tokens)
            return batches.again(batches.plan(0), 0)

        def offers(tokens):
            inputs = chunk(tokens)
            return [("boundaries", [Trial(lambda: inputs, "boundaries")])]

        tokens, _, found = settle(engine, 200, longest, offers)
    gone = all(p.grad is None for p in model.parameters())
    return {"tokens": tokens, "tried": tried, "fits": found.fits, "gone": gone}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    group, out = Group.current(), Path(sys.argv[1])
    said = {n: stalls(group, out / n, n == "same") for n in ("behind", "same")}
    said["slow"] = slow(group, out / "slow")
    said |= {"raised": raised(group), "blamed": blamed(group), "settled": settled(group)}
    mine = agreed(group, CPU, Footprint(10.0 + group.rank, 3.0 - group.rank), 1000 - group.rank, 50)
    say(said | {"agreed": [mine[0].all, mine[0].boundaries, *mine[1:]]})
    dist.destroy_process_group()
