"""A run in its folder: what is made, skipped, refused, resumed after a kill, and locked."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from omni2vec.launch import lock
from omni2vec.launch.load import load
from omni2vec.launch.record import read
from omni2vec.launch.run import run, spoken
from omni2vec.launch.words import RecipeError


def made(toy, at, *words, redo=(), only=""):
    """The lines that a run said."""
    lines = []
    run(load(toy, words), at, redo, lines.append, only)
    return lines


def start(toy, at, *words):
    command = [sys.executable, "-m", "omni2vec", "run", str(toy), "--into", str(at), *words]
    # A shell that runs these tests in the background has told its children to ignore Ctrl-C.
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)


def wait_for(condition, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def log_of(folder):
    log = folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_every_step_is_made_once_in_order(toy, tmp_path):
    lines = made(toy, tmp_path)
    assert [line.split(":")[0] for line in lines[::2]] == [
        "[1/4] numbers",
        "[2/4] train",
        "[3/4] again",
        "[4/4] report",
    ]
    assert json.loads((tmp_path / "train" / "sum.json").read_text()) == pytest.approx(0.3)
    assert "0.3" in (tmp_path / "report" / "report.html").read_text()
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"numbers", "train", "again", "report", "record.json", "run.lock"}


def test_the_record_beside_the_steps_loads_back_to_the_recipe(toy, tmp_path):
    made(toy, tmp_path, "count=4")
    assert read(json.loads((tmp_path / "record.json").read_text())) == load(toy, ["count=4"])


def test_done_steps_are_skipped(toy, tmp_path):
    made(toy, tmp_path)
    before = (tmp_path / "train" / "log.jsonl").stat().st_mtime_ns
    assert all("done before" in line for line in made(toy, tmp_path))
    assert (tmp_path / "train" / "log.jsonl").stat().st_mtime_ns == before


def test_done_says_digest_time_and_versions_and_no_path(toy, tmp_path):
    made(toy, tmp_path)
    text = (tmp_path / "train" / "done.json").read_text()
    done = json.loads(text)
    assert len(done["digest"]) == 32 and done["seconds"] >= 0 and done["made_with"]["omni2vec"] and done["tries"] == 1
    assert str(tmp_path) not in text and os.uname().nodename not in text


def test_a_changed_field_stops_the_run_and_says_which(toy, tmp_path):
    made(toy, tmp_path)
    with pytest.raises(RecipeError) as error:
        made(toy, tmp_path, "train.optimizer.lr=0.2")
    message = str(error.value)
    assert "train.optimizer.lr: 0.1 -> 0.2" in message and "--redo train" in message and "report" in message
    assert json.loads((tmp_path / "train" / "sum.json").read_text()) == pytest.approx(0.3)


def test_a_change_upstream_is_told_at_its_root_alone(toy, tmp_path):
    made(toy, tmp_path)
    with pytest.raises(RecipeError) as error:
        made(toy, tmp_path, "count=4")
    assert "numbers.count: 3 -> 4" in str(error.value) and "--redo numbers" in str(error.value)
    assert "which is another now" not in str(error.value)


def test_nothing_is_made_where_a_later_step_has_changed(toy, tmp_path):
    made(toy, tmp_path)
    for path in (tmp_path / "numbers").iterdir():
        path.unlink()
    (tmp_path / "numbers").rmdir()
    with pytest.raises(RecipeError):
        made(toy, tmp_path, "again.steps=2")
    assert not (tmp_path / "numbers").exists()


def test_redo_makes_a_step_anew_with_what_stands_on_it(toy, tmp_path):
    made(toy, tmp_path)
    lines = made(toy, tmp_path, "train.optimizer.lr=0.2", redo=["train"])
    assert [line for line in lines if line.startswith("removing")] == [
        f"removing {tmp_path / 'train'}",
        f"removing {tmp_path / 'report'}",
    ]
    assert json.loads((tmp_path / "train" / "sum.json").read_text()) == pytest.approx(0.6)
    assert "[1/4] numbers: done before" in "\n".join(lines) and "[3/4] again: done before" in "\n".join(lines)


def test_redo_of_an_unknown_step_lists_the_steps(toy, tmp_path):
    with pytest.raises(RecipeError, match=r"no such step\. Did you mean 'train'"):
        made(toy, tmp_path, redo=["trian"])


def test_redo_of_a_step_that_another_run_is_making_is_refused(toy, tmp_path):
    made(toy, tmp_path, "steps=400", only="numbers")
    process = start(toy, tmp_path, "steps=400", "slow_s=0.05", "--only", "train")
    wait_for(lambda: len(log_of(tmp_path / "train.partial")) >= 1)
    try:
        for redo in ("train", "numbers"):  # train stands on numbers
            for only in ("", redo):
                with pytest.raises(RecipeError, match=rf"train is being made by process {process.pid} on host "):
                    made(toy, tmp_path, "steps=2", redo=[redo], only=only)
        assert (tmp_path / "numbers").exists() and (tmp_path / "train.partial").exists() and process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert made(toy, tmp_path, "steps=2", redo=["train"], only="train")
    assert not (tmp_path / "train.lock").exists() and not (tmp_path / "report.lock").exists()


def test_redo_of_another_step_than_the_one_that_is_made_is_refused(toy, tmp_path):
    made(toy, tmp_path)
    with pytest.raises(RecipeError, match="--redo train with --only report: nothing would make train anew"):
        made(toy, tmp_path, redo=["train"], only="report")
    assert (tmp_path / "train").exists()


def test_a_changed_outside_file_stops_the_run(toy, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("one\n")
    made(toy, tmp_path / "run", f"data={file}")
    file.write_text("two\n")
    with pytest.raises(RecipeError, match=r"train reads data\.lines: "):
        made(toy, tmp_path / "run", f"data={file}")


def test_a_missing_outside_file_is_told_before_anything_is_made(toy, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        made(toy, tmp_path / "run", f"data={tmp_path / 'none.txt'}")
    assert not (tmp_path / "run" / "numbers").exists()


def test_a_folder_that_no_run_made_is_not_touched(toy, tmp_path):
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="was not made by a run"):
        made(toy, tmp_path)
    assert (tmp_path / "numbers" / "mine.txt").read_text() == "mine"


def test_a_killed_step_goes_on_from_its_own_files(toy, tmp_path):
    words = ("steps=40", "slow_s=0.05")
    process = start(toy, tmp_path, *words)
    partial = tmp_path / "train.partial"
    wait_for(lambda: len(log_of(partial)) >= 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    killed = log_of(partial)
    assert not (tmp_path / "train").exists() and 3 <= len(killed) < 40

    lines = made(toy, tmp_path, *words)
    assert f"[2/4] train: goes on, was stopped in {partial}" in lines
    log = log_of(tmp_path / "train")
    assert [entry["step"] for entry in log] == list(range(40))
    assert {entry["pid"] for entry in log[: len(killed)]} == {process.pid} and log[-1]["pid"] == os.getpid()
    assert json.loads((tmp_path / "train" / "done.json").read_text())["tries"] == 2


def test_an_unfinished_step_of_other_fields_stops_the_run(toy, tmp_path):
    process = start(toy, tmp_path, "steps=400", "slow_s=0.05")
    wait_for(lambda: len(log_of(tmp_path / "train.partial")) >= 1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with pytest.raises(RecipeError, match=r"train\.steps: 400 -> 2"):
        made(toy, tmp_path, "steps=2", "slow_s=0.05")
    made(toy, tmp_path, "steps=2", redo=["train"])
    assert len(log_of(tmp_path / "train")) == 2


def test_a_step_that_cannot_resume_gets_an_empty_folder(toy, tmp_path):
    made(toy, tmp_path)
    done = json.loads((tmp_path / "numbers" / "done.json").read_text())
    (tmp_path / "numbers").rename(tmp_path / "numbers.partial")
    (tmp_path / "numbers.started.json").write_text(json.dumps(done))
    lines = made(toy, tmp_path)  # Numbers.make asserts that its folder is empty
    assert lines[0].startswith("[1/4] numbers: goes on")


def test_a_step_that_fails_leaves_its_folder_unfinished(toy, tmp_path):
    made(toy, tmp_path)
    (tmp_path / "numbers" / "numbers.json").write_text("broken")
    with pytest.raises(json.JSONDecodeError):
        made(toy, tmp_path, redo=["train"])
    assert not (tmp_path / "train").exists() and len(log_of(tmp_path / "train.partial")) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_answered_with_how_to_go_on(toy, tmp_path, number):
    process = start(toy, tmp_path, "steps=400", "slow_s=0.05")
    wait_for(lambda: len(log_of(tmp_path / "train.partial")) >= 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "the same command goes on from there" in out and "Traceback" not in err


def test_two_runs_do_not_share_a_folder_and_a_dead_ones_lock_is_taken_over(toy, tmp_path):
    process = start(toy, tmp_path, "steps=400", "slow_s=0.05")
    wait_for(lambda: len(log_of(tmp_path / "train.partial")) >= 1)
    with pytest.raises(RecipeError, match=rf"another run is at work here \(process {process.pid} on "):
        made(toy, tmp_path, "steps=400")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == process.pid
    assert made(toy, tmp_path, "steps=2", redo=["train"])


def lock_of_another_host(path, age_s):
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "then"}))
    os.utime(path, (time.time() - age_s,) * 2)


@pytest.mark.parametrize("name", ["run.lock", "train.lock"])
def test_a_lock_of_another_host_is_believed_while_it_gives_signs_of_life(toy, tmp_path, name):
    lock_of_another_host(tmp_path / name, 60)
    with pytest.raises(RecipeError, match="a run on host elsewhere holds this folder; it gave a sign of life 60 s ago"):
        made(toy, tmp_path)


def test_a_lock_of_another_host_without_a_sign_of_life_is_taken_over_and_told(toy, tmp_path):
    lock_of_another_host(tmp_path / "run.lock", 600)
    assert "no sign of life for 10 minutes; taken over" in made(toy, tmp_path)[0]


def test_a_held_lock_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    path = tmp_path / "run.lock"
    with lock.locked(path):
        os.utime(path, (0, 0))
        wait_for(lambda: path.stat().st_mtime > 0)
    time.sleep(0.1)
    os.utime(path, (0, 0))
    time.sleep(0.2)
    assert path.stat().st_mtime == 0  # and none once it is free


def test_one_step_alone_is_made_beside_a_run_of_another(toy, tmp_path):
    made(toy, tmp_path, only="numbers")
    assert (tmp_path / "numbers").exists() and not (tmp_path / "train").exists()
    with lock.locked(tmp_path / "train.lock"):
        assert "[3/4] again: done" in made(toy, tmp_path, only="again")[-1]


def test_one_step_alone_wants_what_it_stands_on(toy, tmp_path):
    with pytest.raises(RecipeError, match="--only report: it stands on train, again, not done yet"):
        made(toy, tmp_path, only="report")
    with pytest.raises(RecipeError, match=r"--only trian: no such step\. Did you mean 'train'"):
        made(toy, tmp_path, only="trian")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.4, "59.4 s"), (61, "1 min 01 s"), (7380, "2 h 03 min")]
)
def test_times_are_spoken(seconds, text):
    assert spoken(seconds) == text


def failing(toy, at, *words):
    with pytest.raises((RecipeError, ValueError)):
        made(toy, at, *words)


def test_a_step_that_failed_before_it_began_is_made_anew_from_a_corrected_recipe(toy, tmp_path, monkeypatch, steps):
    def wrong(self, out, where):
        (out / "failed.json").write_text("{}")
        (out / "log.jsonl").write_text('{"step":0,"event":"start"}\n')
        raise ValueError("no row can form it")

    with monkeypatch.context() as patch:
        patch.setattr(steps.Train, "make", wrong)
        failing(toy, tmp_path)
    assert (tmp_path / "train.partial").exists()
    lines = made(toy, tmp_path, "train.optimizer.lr=0.2")
    assert "[2/4] train: starts" in lines
    assert [entry["step"] for entry in log_of(tmp_path / "train")] == list(range(5))
    assert json.loads((tmp_path / "train" / "done.json").read_text())["tries"] == 1


def test_a_step_that_has_done_a_step_or_left_a_file_is_not_made_anew_unasked(toy, tmp_path, monkeypatch, steps):
    def killed(name, text):
        def make(self, out, where):
            (out / name).write_text(text)
            raise ValueError("killed")

        return make

    for at, (name, text) in enumerate([("log.jsonl", '{"step":0,"loss":1}\n'), ("rows.tar", "")]):
        with monkeypatch.context() as patch:
            patch.setattr(steps.Train, "make", killed(name, text))
            failing(toy, tmp_path / str(at))
        with pytest.raises(RecipeError, match=r"train\.optimizer\.lr: 0.1 -> 0.2"):
            made(toy, tmp_path / str(at), "train.optimizer.lr=0.2")
        assert (tmp_path / str(at) / "train.partial" / name).read_text() == text
