"""Steps of two ranks on this machine: killed, stopped, told apart, refused, and made whole all the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omni2vec.data.types import DataError
from omni2vec.launch.load import load
from omni2vec.launch.run import Folder, run
from omni2vec.launch.supervise import HEADING, Grace, verdict
from omni2vec.launch.team import Here, RankError, Ranks, attempts, log_of, show_tail
from omni2vec.launch.worker import broken, failed
from omni2vec.train.guard import Restart
from omni2vec.train.snapshot import NotSaved

GROUP = Path(__file__).parent / "group_recipe.py"
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def whole(at, steps):
    """The lines of the finished step's log, once it is as if nothing had happened."""
    log = [json.loads(line) for line in (at / "add" / "log.jsonl").read_text().splitlines()]
    last = {entry["step"]: entry for entry in log}  # a step that was not saved was made again
    assert list(last) == list(range(steps))
    assert json.loads((at / "add" / "sum.json").read_text())["sum"] == 3 * sum(range(steps))
    assert not (at / "add" / "failed.json").exists() and not (at / "add" / "restart.json").exists()
    return log


def here(at, *words, restarts=3):
    """Lines said by a run with two ranks in this process's care."""
    lines = []
    ranks = Ranks(lines.append, GROUP, restarts, Grace(failure_s=3.0))
    try:
        run(load(GROUP, words), at, say=lines.append, parallel=Here(2, ranks).make)
    finally:
        lines += ["", *(at / "logs" / "add" / "rank-1.log").read_text().splitlines()]
    return lines


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_killed_rank_and_a_stopped_run_change_nothing_in_the_end(tmp_path):
    words = ["fault=kill", "steps=30", "slow_s=0.15", "--ranks", "2", "--into", str(tmp_path)]
    command = [sys.executable, "-m", "omni2vec", "run", str(GROUP), *words]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log, end = tmp_path / "add.partial" / "log.jsonl", time.monotonic() + 90
    while not (log.exists() and len(log.read_text().splitlines()) > 8):  # rank 1 kills itself at step 3
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "add: rank 1 was ended by SIGKILL; all ranks start again from step-00000002" in said
    assert (
        f"told to stop by SIGTERM; saved in {tmp_path}/add.partial/checkpoints/step-0000" in said
        and "the same command goes on from there" in said
    )
    assert "Traceback" not in said
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and "[1/2] first: done before" in done.stdout, done.stdout + done.stderr
    assert len({entry["pid"] for entry in whole(tmp_path, 30)}) == 3


def test_bad_input_on_one_rank_is_told_once_and_ends_all(tmp_path, capfd):
    with pytest.raises(RankError) as error:
        here(tmp_path, "fault=input")
    assert error.value.status == 2 and "rows.jsonl, line 7" in str(error.value)
    told = json.loads((tmp_path / "add.partial" / "failed.json").read_text())
    assert (told["rank"], told["kind"], told["host"]) == (1, "input", os.uname().nodename)
    log = (tmp_path / "logs" / "add" / "rank-1.log").read_text()
    assert log.count("error: rows.jsonl, line 7: not JSON") == 1 and "Traceback" not in log
    assert capfd.readouterr().err == ""  # rank 0 lost its connection, and is silent


def test_ranks_that_read_other_data_are_named_before_anything_is_made(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TOY_DATA_1", "9876")
    with pytest.raises(RankError) as error:
        here(tmp_path)
    host = os.uname().nodename
    assert f'rank 1 on host {host}: data.rows is "9876", but "0123" on rank 0 on host {host}' in str(error.value)
    assert error.value.status == 2 and not (tmp_path / "add.partial" / "log.jsonl").exists()
    assert capfd.readouterr().err.count("the ranks do not stand on the same ground") == 1


def test_out_of_memory_starts_again_with_its_wish_and_gives_up_in_the_end(tmp_path):
    with pytest.raises(RankError, match="out of memory"):
        here(tmp_path, "fault=memory", restarts=0)
    lines = here(tmp_path, "fault=memory")
    assert json.loads((tmp_path / "add" / "sum.json").read_text())["wishes"]["chunk_tokens"] == 512
    assert "stopping: out of memory" in lines and len(whole(tmp_path, 6)) == 7


def test_one_rank_that_wishes_to_go_on_otherwise_starts_again_in_a_process_of_its_own(tmp_path):
    lines = []
    one = Here(1, Ranks(lines.append, GROUP))
    recipe = load(GROUP, ["fault=memory"])
    run(recipe, tmp_path, say=lines.append, parallel=one.make)
    assert "add: out of memory; starts again in a process of its own" in lines
    pids = [json.loads(line)["pid"] for line in (tmp_path / "add" / "log.jsonl").read_text().splitlines()]
    assert pids[0] == os.getpid() != pids[-1]


def test_the_end_of_a_log_is_that_of_the_last_try(tmp_path):
    log = log_of(tmp_path, "train", 1)
    log.parent.mkdir(parents=True)
    log.write_text(f"{HEADING}then\nold\n{HEADING}now\nnew\n")
    said = []
    show_tail(tmp_path, "train", 1, said.append)
    assert str(log) in said[0] and said[1:] == [f"  {HEADING}now", "  new"]


@pytest.mark.parametrize(
    ("signals", "kind"), [([signal.SIGTERM], Restart), ([signal.SIGINT], KeyboardInterrupt)], ids=["cluster", "ctrl-c"]
)
def test_who_stops_a_step_is_told_where_it_was_saved(signals, kind, tmp_path):
    for said, folder in (("no checkpoint was saved yet", tmp_path), ("checkpoints/step-00000004", tmp_path / "saved")):
        (tmp_path / "saved" / "checkpoints" / "step-00000004").mkdir(parents=True, exist_ok=True)
        with pytest.raises(kind, match=said):
            attempts(lambda heard: verdict({0: 75, 1: 75}, signals, None), Failing(None), folder, Ranks())


# ---- what a rank says of an error, without a group


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DataError("x.tar: cut"), 2, "error: x.tar: cut"),
        (ValueError("batch=3"), 2, "error: batch=3"),
        (ImportError('needs av: pip install "omni2vec[video]"'), 2, "error: needs av"),
        (ImportError("no module"), 1, "ImportError: no module"),
        (KeyError("q"), 1, "KeyError: 'q'"),
        (FileNotFoundError("Zero(json='z.json'): there is no such file"), 2, "error: Zero(json='z.json'): there is"),
        (PermissionError(13, "Permission denied", "x.tar"), 2, "error: [Errno 13] Permission denied: 'x.tar'"),
        (NotSaved("step 4 is not saved: no room"), 2, "error: step 4 is not saved: no room"),
        (OSError(5, "Input/output error"), 1, "OSError: [Errno 5]"),
    ],
)
def test_a_clear_error_is_a_line_and_any_other_a_traceback(error, status, said, tmp_path, capsys):
    assert failed(error, 0, None, tmp_path) == status
    text = capsys.readouterr().err
    assert said in text
    assert json.loads((tmp_path / "failed.json").read_text())["status"] == status


class Failing:
    name = "train"

    def __init__(self, error):
        self.error = error

    def make(self, out, where):
        raise self.error


@pytest.mark.parametrize(
    "error", [ValueError("batch=3"), FileNotFoundError("no z.json"), NotSaved("no room"), DataError("x.tar: cut")]
)
def test_bad_input_of_a_rank_in_this_process_is_bad_input_to_the_command(error, tmp_path):
    with pytest.raises(DataError) as told:
        Here(1).make(Failing(error), tmp_path, Folder(tmp_path))
    assert str(told.value) == str(error) and error in (told.value, told.value.__cause__)


@pytest.mark.parametrize("error", [KeyError("q"), OSError(5, "Input/output error")])
def test_a_fault_of_a_rank_in_this_process_stays_what_it_is(error, tmp_path):
    with pytest.raises(type(error)) as told:
        Here(1).make(Failing(error), tmp_path, Folder(tmp_path))
    assert told.value is error


def test_a_clear_errors_traceback_is_there_for_who_asks(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMNI2VEC_TRACEBACK", "1")
    failed(DataError("x"), 0, None, tmp_path)
    assert "DataError: x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[/x/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1", True),
        ("[/x/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation", True),
        ("NCCL error: ncclRemoteError: A call failed possibly due to a network error", True),
        ("CUDA error: an illegal memory access", False),
        ("connection of the layers is wrong", False),
    ],
)
def test_a_broken_connection_is_told_from_an_error_of_ones_own(text, lost):
    assert broken(RuntimeError(text)) is lost


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Here(0).size == 2 and Here(2).size == 2 and Here(1).size == 1
    with pytest.raises(DataError, match="--ranks 3: this machine has 2 GPUs"):
        _ = Here(3).size
