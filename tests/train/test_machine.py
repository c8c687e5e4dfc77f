"""Facts of the machine: peaks by name, memory, commits."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from omni2vec.train.machine import commit_of, host_peak_bytes, peak_flops


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA RTX A1000", 0.0),
        ("cpu", 0.0),
    ],
)
def test_a_device_is_known_by_its_name_alone(name: str, teraflops: float) -> None:
    assert peak_flops(name) == pytest.approx(teraflops * 1e12)


def test_the_peak_of_the_host_grows_by_what_was_held() -> None:
    before = host_peak_bytes()
    held = np.ones(1 << 26, dtype=np.uint8) * 3  # touched, so that it is there
    grown = host_peak_bytes()
    assert before > 1 << 20
    del held
    assert host_peak_bytes() == grown  # a peak does not fall


def _git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_the_one_that_git_names(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    (repo / "deep").mkdir(parents=True)
    assert commit_of(repo / "deep") == ""
    _git(repo, "init", "-q")
    assert commit_of(repo) == ""  # nothing committed yet
    _git(repo, "commit", "-q", "--allow-empty", "-m", "one")
    head = _git(repo, "rev-parse", "HEAD")
    assert commit_of(repo / "deep") == head
    _git(repo, "pack-refs", "--all")
    assert commit_of(repo) == head
    _git(repo, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    assert commit_of(tmp_path / "side") == head
    _git(repo, "checkout", "-q", "--detach")
    assert commit_of(repo) == head
