"""An embedder's folder out of a run that was stopped on its way."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from omni2vec import Embedder
from omni2vec.data.shards import write_shards
from omni2vec.data.types import Example
from omni2vec.launch.checkpoint import export
from omni2vec.launch.load import load
from omni2vec.launch.run import run
from omni2vec.launch.team import Here, Ranks
from omni2vec.launch.words import RecipeError
from omni2vec.train.guard import Restart

from ..model.small import mixed, tiny

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "finetune_embedder.py"


def notice(path):
    """SIGUSR1 to this process once `path` is there."""
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run's folder whose stage was told to stop after a few steps, and the base that it started from."""
    at = tmp_path_factory.mktemp("run")
    items = mixed(16, video=False)
    pairs = [Example(f"pairs/{i}", "pairs", "retrieval", items[2 * i], (items[2 * i + 1],)) for i in range(8)]
    for part in ("train", "test"):
        write_shards(pairs, at / "data" / part / "pairs")
    tiny().save(at / "base")
    words = [f"model={at / 'base'}", f"data={at / 'data'}", "steps=5000", "batch=4", "lora_rank=2", "train.workers=0"]
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=notice, args=(at / "run" / "train.partial" / "log.jsonl",), daemon=True).start()
    lines = []
    with pytest.raises(Restart, match="asked to end; saved behind step"):
        run(load(RECIPE, words), at / "run", say=lines.append, parallel=Here(1, Ranks(lines.append)).make)
    signal.signal(signal.SIGUSR1, before)
    assert "starts again" not in "\n".join(lines)  # told to stop: that is for who called
    return at


def test_the_newest_checkpoint_becomes_an_embedder_that_has_learned(stopped, tmp_path):
    folder, name = export(stopped / "run", "", None, tmp_path / "peek")
    assert name.startswith("step-") and folder == tmp_path / "peek"
    items = mixed(4, video=False)
    exported, base = Embedder.load(folder), Embedder.load(stopped / "base")
    assert exported.adapter is not None
    assert float((exported.encode(items) - base.encode(items)).abs().max()) > 1e-6
    again, _ = export(stopped / "run", "train", int(name.removeprefix("step-")), tmp_path / "again")
    torch.testing.assert_close(Embedder.load(again).encode(items), exported.encode(items), rtol=0, atol=0)


def test_what_is_not_there_is_told_with_what_is(stopped, tmp_path):
    with pytest.raises(RecipeError, match=r"no stage 'trian'\. Did you mean 'train'"):
        export(stopped / "run", "trian", None, tmp_path / "x")
    with pytest.raises(RecipeError, match=r"has no checkpoint 4999\. It has \d+ "):
        export(stopped / "run", "train", 4999, tmp_path / "x")
    with pytest.raises(RecipeError, match="no run's folder"):
        export(stopped, "train", None, tmp_path / "x")
    (tmp_path / "there").mkdir()
    with pytest.raises(RecipeError, match="exists already"):
        export(stopped / "run", "train", None, tmp_path / "there")
