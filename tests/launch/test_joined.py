"""A run in the processes of an outside launcher: together from the first word to the last, one of them speaking."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

GROUP = Path(__file__).parent / "group_recipe.py"
BIN = Path(sys.executable).parent


def launched(at, *words_of_rank):
    """`omni2vec run` once for each rank, with that rank's words and torch's variables."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    place = {"WORLD_SIZE": str(len(words_of_rank)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "omni2vec", "run", str(GROUP), *words, "--into", str(at)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, words in enumerate(words_of_rank)
    ]


def ended(processes):
    """(exit status, what it said) of each rank."""
    try:
        return [(p.returncode, said) for p in processes for said in [p.communicate(timeout=60)[0]]]
    finally:
        for p in processes:
            p.kill()


def test_ranks_with_other_recipes_leave_together_and_the_first_says_who_differs(tmp_path):
    (status, said), (other, silent) = ended(launched(tmp_path, ["steps=6"], ["steps=7"]))
    assert (status, other, silent) == (2, 2, "")
    assert f"rank 1 on host {os.uname().nodename}: recipe.add.steps is 7, but 6 on rank 0" in said
    assert "Traceback" not in said and not (tmp_path / "first").exists()


@pytest.mark.slow  # of the same parts as the one above
def test_a_recipe_that_one_rank_cannot_load_is_told_by_the_first(tmp_path):
    (status, said), (other, silent) = ended(launched(tmp_path, [], ["stepps=6"]))
    assert (status, other, silent) == (2, 2, "")
    assert said.count("rank 1 on host") == 1 and "no setting 'stepps'. Did you mean 'steps'?" in said


@pytest.mark.slow  # of the same parts as the one above
def test_a_recipe_that_no_rank_can_load_is_told_once(tmp_path):
    (status, said), (other, silent) = ended(launched(tmp_path, ["stepps=6"], ["stepps=6"]))
    assert (status, other, silent) == (2, 2, "")
    assert said.startswith("error: ") and said.count("no setting 'stepps'") == 1


def test_when_the_first_process_is_killed_the_others_leave(tmp_path):
    processes = launched(tmp_path, ["first_s=60"], ["first_s=60"])
    end = time.monotonic() + 40
    while not (tmp_path / "first.partial").exists() and time.monotonic() < end:
        time.sleep(0.05)
    processes[0].kill()
    (_, _), (status, said) = ended(processes)
    assert status == 1 and "rank 1 on host" in said and "the first process has gone" in said and "Traceback" not in said


def test_a_signal_in_a_step_without_ranks_ends_all_with_the_restart_code(tmp_path):
    processes = launched(tmp_path, ["first_s=60"], ["first_s=60"])
    end = time.monotonic() + 40
    while not (tmp_path / "first.partial").exists() and time.monotonic() < end:
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    (status, said), (other, silent) = ended(processes)
    assert (status, other, silent) == (75, 75, "")
    assert "the same command goes on from there" in said


@pytest.mark.parametrize(
    "launcher",
    [
        ("torchrun", "--standalone", "--nproc-per-node", "2", "-m", "omni2vec"),
        # Without --no_local_rank it gives each process a word of its own.
        pytest.param(("deepspeed", "--num_gpus", "2", "--module", "omni2vec"), marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_a_launchers_own_command_makes_the_whole_recipe(launcher, tmp_path):
    if not (BIN / launcher[0]).exists() and not shutil.which(launcher[0]):
        pytest.skip(f"{launcher[0]} is not installed")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [*launcher, "run", str(GROUP), "--into", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("[2/2] add: done in") == 1
    assert json.loads((tmp_path / "add" / "sum.json").read_text())["sum"] == 45
    assert (tmp_path / "logs" / "add" / "rank-1.log").read_text().splitlines()[1] == "rank 1 of 2 from step 0"


@pytest.mark.slow  # it waits
def test_a_process_that_waits_for_the_first_one_hears_a_signal(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]  # nobody listens there
    env = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "omni2vec", "run", str(GROUP), "--into", str(tmp_path)]
    waiting = subprocess.Popen(command, env={**env, "MASTER_PORT": str(port)}, stderr=subprocess.PIPE)
    time.sleep(6)
    waiting.send_signal(signal.SIGTERM)
    try:
        assert waiting.wait(20) == 130
    finally:
        waiting.kill()
