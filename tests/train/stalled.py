"""Run as a script in two ranks: rank 1 hangs in a function with a telling name, rank 0 waits for it in a sum. Then once
more, where each rank has beaten as often, so that only the stacks tell them apart; then a slow one that goes on."""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from omni2vec.train.gather import Group
from omni2vec.train.watchdog import Watchdog

from tests.ranks import say


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


if __name__ == "__main__":
    dist.init_process_group("gloo")
    group, out = Group.current(), Path(sys.argv[1])
    said = {n: stalls(group, out / n, n == "same") for n in ("behind", "same")}
    said["slow"] = slow(group, out / "slow")
    say(said)
    dist.destroy_process_group()
