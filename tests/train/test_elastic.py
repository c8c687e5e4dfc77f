"""A stage whose ranks are killed goes on with more or fewer of them, and ends at the same weights."""

import signal
import time
from pathlib import Path

import pytest
import torch
from omni2vec import Embedder
from omni2vec.train.monitor import read_log
from omni2vec.train.resume import existing
from safetensors.torch import load_file

from ..ranks import start
from .stages import STEPS
from .test_stage import folder  # noqa: F401

SCRIPT = Path(__file__).parent / "stages.py"


def begin(at, variant, out, size, logs):
    return start(SCRIPT, size, at, variant, out, folder=logs)


def end(processes, logs):
    for p in processes:
        p.wait(120)
    told = "\n".join((logs / f"rank-{r}.log").read_text()[-3000:] for r in range(len(processes)))
    assert all(p.returncode == 0 for p in processes), told


def killed(processes, out, step):
    """Kill -9 the last rank in the middle of a step, behind checkpoint `step`; then, as a launcher does, the others."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and all(p.poll() is None for p in processes):
        done = any(r["step"] >= step and "loss" in r for r in read_log(out / "log.jsonl"))
        if done and any(p.name >= f"step-{step:08d}" for p in existing(out)):
            break
        time.sleep(0.01)
    processes[-1].kill()
    processes[-1].wait()
    assert processes[-1].returncode == -signal.SIGKILL
    for p in processes:
        p.kill()
        p.wait()


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):  # noqa: F811
    """The folder of an uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("whole")
    end(begin(folder, "elastic", out / "out", 1, out), out)
    return out / "out"


@pytest.mark.parametrize(
    ("variant", "ranks"),
    [
        ("elastic 3", (2, 1)),
        *(pytest.param(v, r, marks=pytest.mark.slow) for v, r in (("elastic 3", (2, 1, 2)), ("elastic 2", (2, 1)))),
    ],
)
def test_ranks_killed_and_begun_again_in_other_numbers_end_at_the_same_weights(
    folder, whole, tmp_path, variant, ranks  # noqa: F811
):  # fmt: skip
    out = tmp_path / "out"
    for size, step in zip(ranks[:-1], (3, 6), strict=False):
        killed(begin(folder, variant, out, size, tmp_path), out, step)
        assert existing(out)
        assert not (out / "model.safetensors").exists()
    end(begin(folder, variant, out, ranks[-1], tmp_path), tmp_path)
    before, right, found = (load_file(p / "model.safetensors") for p in (folder / "model", whole, out))
    moved = sum(float((right[n] - before[n]).pow(2).sum()) for n in right) ** 0.5
    apart = sum(float((right[n] - found[n]).pow(2).sum()) for n in right) ** 0.5
    assert apart < 1e-5 * moved
    logs = [[r for r in read_log(p / "log.jsonl") if "loss" in r] for p in (whole, out)]
    assert [r["step"] for r in logs[1]] == list(range(STEPS))
    for one, other in zip(*logs, strict=True):
        assert one["tokens"] == other["tokens"] and one["rows"] == other["rows"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert not (out / "checkpoints").exists()
    assert torch.isfinite(Embedder.load(out).encode(["a red circle"])).all()
