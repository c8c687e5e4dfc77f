"""What two ranks of a real stage refuse: one of them says so in plain words, both leave, and nothing is lost."""

import os
import subprocess
import sys

import pytest
from omni2vec.data.shards import write_shards
from omni2vec.train.resume import existing

from ..model.small import tiny
from ..train.test_stage import examples

RECIPE = """
from omni2vec.data.mix import Feed
from omni2vec.data.sources import Shards
from omni2vec.train.stage import Stage
from omni2vec.train.zero import Zero


def recipe(model: str, data: str, batch: int = 8, chunk_tokens: int = 256) -> Stage:
    feeds = (Feed(Shards(data, name="rows")),)
    return Stage("train", model, feeds, steps=3, batch=batch, chunk_tokens=chunk_tokens, zero=Zero(stage=2),
                 memory="boundaries", save_every=1, device="cpu")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("refused")
    write_shards(examples(), path / "rows")
    tiny().save(path / "model")
    (path / "recipe.py").write_text(RECIPE)
    return path


def run(folder, into, *words):
    command = [sys.executable, "-m", "omni2vec", "run", str(folder / "recipe.py"), f"model={folder / 'model'}"]
    command += [f"data={folder / 'rows'}", *words, "--into", str(into), "--ranks", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr  # a rank's log is shown where it was not on the terminal


def test_a_chunk_too_small_and_a_checkpoint_of_another_model_are_refused_and_nothing_is_lost(folder, tmp_path):
    from omni2vec.train.engine import Local
    from omni2vec.train.optim import AdamW
    from omni2vec.train.resume import State
    from omni2vec.train.snapshot import Saver

    short = "chunk_tokens=8"
    status, error = run(folder, tmp_path, short)
    assert status == 2, error
    assert error.count("chunk_tokens=8 is smaller than the longest item") == 1, error
    partial = tmp_path / "train.partial"
    with Saver(Local(tiny("qwen3_vl"), AdamW()), partial) as saver:
        saver.save(State(step=2, chunk_tokens=256, memory="boundaries"), background=False)
    status, error = run(folder, tmp_path, short)
    assert status == 2, error
    assert error.count("is of another model") == 1, error
    assert [p.name for p in existing(partial)] == ["step-00000002"]
