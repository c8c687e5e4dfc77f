"""Run by tests/train/test_searching.py in every rank of a gloo group, or alone to be killed: one search, by windows."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from omni2vec.eval.approximate import Approximate
from omni2vec.eval.matrix import Mapped
from omni2vec.eval.nearest import Exact
from omni2vec.train import searching
from omni2vec.train.gather import Group
from omni2vec.train.guard import Signals

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.ranks import say


def die_at_window(number: int) -> None:
    """The process is gone in the middle of writing that window."""
    real, begun = searching._window, [0]

    def window(folder, starts, *rest):
        begun[0] += 1
        if begun[0] == number:
            (folder / f".{starts[0]:012d}.safetensors.part").write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        real(folder, starts, *rest)

    searching._window = window


def main() -> None:
    torch.set_num_threads(1)
    folder, out, kind, die = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    how = Exact() if kind == "exact" else Approximate(lists=16, probes=4, train_rows=1024)
    searching.WINDOW = 64
    if die:
        die_at_window(die)
    done, searched = [], []
    real = searching._window
    searching._window = lambda at, starts, *rest: (searched.extend(starts), real(at, starts, *rest))[1]
    query, docs = Mapped(folder / "query.safetensors"), Mapped(folder / "docs.safetensors")
    with Signals() as signals:
        searching.searched(out, query, docs, 7, how, Group.current(), signals, advance=done.append)
    if "RESULT" in os.environ:
        say({"done": sum(done), "searched": searched})
        dist.barrier()


if __name__ == "__main__":
    main()
