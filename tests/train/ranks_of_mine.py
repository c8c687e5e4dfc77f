"""Run by tests/train/test_mine_ranks.py in every rank of a gloo group: the Mine step, each rank its share."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from omni2vec.data.sources import Shards
from omni2vec.train import mine_run, searching, teacher
from omni2vec.train.mine import Mine
from omni2vec.train.rules import PercentOfPositive

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.ranks import say


def nowhere(step):
    raise AssertionError(f"no step is needed, asked for {step}")


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    teacher.WINDOW, searching.WINDOW, mine_run.WINDOW = 20, 16, 8
    judged, written = [], []
    real, write = mine_run.Miner.judge, mine_run.write_shard
    mine_run.Miner.judge = lambda self, start, stop: (judged.append(start), real(self, start, stop))[1]
    mine_run.write_shard = lambda e, path, roots: (written.append(path.name), write(e, path, roots))[1]
    rules = (PercentOfPositive(0.99),)
    Mine("m", str(folder / "model"), Shards(str(folder / "rows")), rules=rules, count=3, among=20).make(out, nowhere)
    say([judged, written])
    dist.barrier()


if __name__ == "__main__":
    main()
