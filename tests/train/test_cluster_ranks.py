"""Two ranks make the clusters that one makes, and go on from the windows that are there."""

import json
from pathlib import Path

import numpy as np
import torch
from omni2vec.data.clusters import grouped
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import Example, Item
from omni2vec.train import teacher
from omni2vec.train.cluster import Cluster

from ..model.small import tiny
from ..ranks import run

SCRIPT = Path(__file__).parent / "ranks_of_cluster.py"


def nowhere(step):
    raise AssertionError(f"no step is needed, asked for {step}")


def test_two_ranks_make_the_clusters_of_one(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    words = ["red", "green", "circle", "above", "square"]
    texts = [" ".join(rng.choice(words, int(rng.integers(2, 9)))) for _ in range(50)]
    rows = [
        Example(f"rows/{i}", "rows", "retrieval", Item.text(f"{t} {i}"), (Item.text(f"{t[::-1]} {i}"),))
        for i, t in enumerate(texts)
    ]
    write_shards(rows, tmp_path / "rows")
    tiny().save(tmp_path / "model")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    source = Shards(str(tmp_path / "rows"))
    monkeypatch.setattr(teacher, "WINDOW", 20)
    monkeypatch.setattr(teacher.Teacher, "forget", lambda self: None)
    Cluster("c", str(tmp_path / "model"), source, size=8, skip=2, neighbours=20).make(one, nowhere)
    # Of the two ranks' run, the first window is there: as one rank left it.
    (two / teacher.FOLDER).mkdir()
    first = sorted((one / teacher.FOLDER).glob("query-*"))[0]
    (two / teacher.FOLDER / first.name).write_bytes(first.read_bytes())
    assert run(SCRIPT, 2, tmp_path, two, timeout=60) == [[20, 10, 20, 20, 10]] * 2
    opened = source.open(nowhere)
    assert (grouped(one, opened)[0] == grouped(two, opened)[0]).all()
    ours, theirs = (json.loads((at / "report.json").read_text()) for at in (one, two))
    assert abs(ours.pop("similarity_inside") - theirs.pop("similarity_inside")) < 1e-5
    assert abs(ours.pop("similarity_random") - theirs.pop("similarity_random")) < 1e-5
    assert ours == theirs
