"""Run by tests/train/test_cluster_ranks.py in every rank of a gloo group: the Cluster step, each rank its share."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from omni2vec.data.sources import Shards
from omni2vec.train import teacher
from omni2vec.train.cluster import Cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.ranks import say


def nowhere(step):
    raise AssertionError(f"no step is needed, asked for {step}")


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    teacher.WINDOW = 20
    counted = []
    real = teacher.encode
    teacher.encode = lambda e, p, **settings: (counted.append(len(p)), real(e, p, **settings))[1]
    Cluster("c", str(folder / "model"), Shards(str(folder / "rows")), size=8, skip=2, neighbours=20).make(out, nowhere)
    say(counted)
    dist.barrier()


if __name__ == "__main__":
    main()
