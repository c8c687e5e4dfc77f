"""Two ranks mine what one mines, and go on from the windows that are there."""

import json
from pathlib import Path

import numpy as np
import torch
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import Example, Item
from omni2vec.train import mine_run
from omni2vec.train.mine import Mine
from omni2vec.train.rules import PercentOfPositive

from ..model.small import tiny
from ..ranks import run

SCRIPT = Path(__file__).parent / "ranks_of_mine.py"


def nowhere(step):
    raise AssertionError(f"no step is needed, asked for {step}")


def test_two_ranks_mine_what_one_mines(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    words = ["red", "green", "circle", "above", "square"]
    texts = [" ".join(rng.choice(words, int(rng.integers(2, 9)))) for _ in range(50)]
    rows = [
        Example("", "rows", "retrieval", Item.text(f"{t} {i}"), (Item.text(f"{t[::-1]} {i}"),))
        for i, t in enumerate(texts)
    ]
    write_shards(rows, tmp_path / "rows")
    tiny().save(tmp_path / "model")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    source = Shards(str(tmp_path / "rows"))
    monkeypatch.setattr(mine_run, "WINDOW", 8)
    rules = (PercentOfPositive(0.99),)
    Mine("m", str(tmp_path / "model"), source, rules=rules, count=3, among=20).make(one, nowhere)
    shares = run(SCRIPT, 2, tmp_path, two, timeout=60)
    assert [s[0] for s in shares] == [[0, 16, 32, 48], [8, 24, 40]]
    assert [len(s[1]) for s in shares] == [4, 3]
    ours, theirs = (Shards(str(at), name="r").open(None) for at in (one, two))
    left = [sorted(p.name for p in at.iterdir() if not p.name.startswith(".")) for at in (one, two)]
    assert left[0] == left[1]
    same = [[i.id for i in ours[k].negatives] == [i.id for i in theirs[k].negatives] for k in range(50)]
    assert sum(same) >= 49  # packed otherwise, a vector differs by round-off, which may turn a tie
    told = [json.loads((at / "report.json").read_text()) for at in (one, two)]
    assert told[0]["rows"] == told[1]["rows"] and abs(told[0]["negatives"] - told[1]["negatives"]) <= 2
