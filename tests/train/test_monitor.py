"""The log of a run: whole lines through a kill, no step twice after a resume, no secrets to W&B."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omni2vec.train.monitor import Monitor, Update, Wandb, keep_before, read_log
from rich.console import Console


def _monitor(folder: Path, start: int = 0, total: int = 10, terminal: bool = False) -> tuple[Monitor, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=150)
    return Monitor(folder, total=total, stage="refine", start=start, console=console), screen


def _update(step: int, **values: object) -> Update:
    return Update(step, loss=1 / (step + 1), lr=1e-3, tokens=500, seconds=0.25, **values)  # type: ignore[arg-type]


def test_each_update_is_one_line_with_its_values(tmp_path: Path) -> None:
    monitor, _ = _monitor(tmp_path)
    with monitor:
        monitor.update(_update(0, losses={"infonce": 1.5}, skipped_rows=2))
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["losses"] == {"infonce": 1.5}
    assert (record["step"], record["loss"], record["tokens_per_s"], record["skipped_rows"]) == (0, 1.0, 2000.0, 2)
    assert "norm" not in record  # nothing was measured


def test_a_resumed_log_holds_every_step_once(tmp_path: Path) -> None:
    first, _ = _monitor(tmp_path)
    for step in range(6):
        first.update(_update(step))
    first.event(5, "evaluation", {"hit@1": 0.5})
    first.close()
    resumed, _ = _monitor(tmp_path, start=4)  # the last checkpoint was taken after step 3
    with resumed:
        for step in range(4, 8):
            resumed.update(_update(step))
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == list(range(8))
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_line_that_was_cut_short_is_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step":0}\n{"step":1}\n{"step":2,"lo')
    assert [r["step"] for r in read_log(path)] == [0, 1]
    keep_before(path, 5)
    assert path.read_text() == '{"step":0}\n{"step":1}\n'


def test_every_update_before_a_kill_is_in_the_log(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from omni2vec.train.monitor import Monitor, Update
monitor = Monitor(Path({str(tmp_path)!r}), total=10**9)
step = 0
while True:
    monitor.update(Update(step, 1.0, 1e-3, 10, 0.1))
    print(step, flush=True)
    step += 1
"""
    running = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert running.stdout is not None
    said = int(running.stdout.readline())
    time.sleep(0.1)
    os.kill(running.pid, signal.SIGKILL)
    said = max([said, *(int(x) for x in running.stdout.read().splitlines())])
    running.wait()
    running.stdout.close()
    text = (tmp_path / "log.jsonl").read_text()
    assert text.endswith("\n")
    steps = [json.loads(line)["step"] for line in text.splitlines()]
    assert steps == list(range(len(steps)))
    assert len(steps) > said


def test_a_loss_that_is_not_finite_is_logged_as_valid_json(tmp_path: Path) -> None:
    monitor, _ = _monitor(tmp_path)
    with monitor:
        monitor.update(Update(0, float("inf"), 1e-3, 10, 0.1, losses={"a": float("nan")}, skipped_steps=1))
    strict = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (strict["loss"], strict["losses"], strict["skipped_steps"]) == ("inf", {"a": "nan"}, 1)


def test_without_a_terminal_the_first_and_the_last_step_are_plain_lines(tmp_path: Path) -> None:
    monitor, screen = _monitor(tmp_path, total=5)
    with monitor:
        for step in range(5):
            monitor.update(_update(step, skipped_rows=3))
    first, last = screen.getvalue().splitlines()
    assert first.startswith("refine 1/5  loss 1.0000  lr 1.00e-03  2,000 tokens/s  3 rows skipped  left 0:0")
    assert last.startswith("refine 5/5  loss 0.2000")
    assert "\x1b" not in screen.getvalue()


def test_in_a_terminal_a_bar_shows_loss_rate_and_speed(tmp_path: Path) -> None:
    monitor, screen = _monitor(tmp_path, terminal=True)
    with monitor:
        monitor.update(_update(4))
    assert "5/10" in screen.getvalue()
    assert "loss 0.2000  lr 1.00e-03  2,000 tokens/s" in screen.getvalue()


def test_rates_are_given_in_all_and_by_rank_and_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    monitor = Monitor(folder, total=4, peak=1e12, console=Console(file=io.StringIO()))
    with monitor:
        monitor.update(_update(0, rows=64, world=4, flops=5e11, computed_tokens=625, scale=20.0, accuracy=0.5))
        monitor.update(_update(1))
    first, second = read_log(folder / "log.jsonl")
    assert (first["tokens_per_s"], first["tokens_per_s_rank"]) == (2000.0, 500.0)
    assert (first["samples_per_s"], first["samples_per_s_rank"]) == (256.0, 64.0)
    assert first["mfu"] == 0.5  # 5e11 in 0.25 s is 2e12 a second, on four devices of 1e12
    assert (first["padding"], first["temperature"], first["total"]) == (0.2, 0.05, 4)
    missing = {"mfu", "padding", "temperature", "accuracy", "effective_rank", "flops", "peak_bytes", "host_bytes"}
    assert not missing & set(second)


def test_utilisation_is_left_out_where_the_peak_is_not_known(tmp_path: Path) -> None:
    monitor, _ = _monitor(tmp_path)
    with monitor:
        monitor.update(_update(0, flops=5e11))
    (record,) = read_log(tmp_path / "log.jsonl")
    assert "mfu" not in record
    assert record["flops"] == 5e11


def test_the_terminal_goes_on_saying_the_last_accuracy_that_was_measured(tmp_path: Path) -> None:
    monitor, screen = _monitor(tmp_path, total=2)
    with monitor:
        monitor.update(_update(0, accuracy=0.75))
        monitor.update(_update(1))
    assert screen.getvalue().splitlines()[-1].startswith("refine 2/2  loss 0.5000  accuracy 75%")


QUERIES: list[dict[str, Any]] = [
    {
        "query": "web/0/3",
        "source": "web",
        "instruction": "Find the picture.",
        "text": "a mug",
        "found": [
            {"document": "web/0/3 positive 0", "score": 0.9, "right": True, "text": "<image 8x8>"},
            {"document": "web/0/7 positive 0", "score": 0.4, "right": False, "text": "<image 9x8>"},
        ],
    }
]


def test_examples_are_an_event_of_the_log_and_no_line_of_the_terminal(tmp_path: Path) -> None:
    monitor, screen = _monitor(tmp_path)
    with monitor:
        monitor.examples(3, QUERIES)
    assert read_log(tmp_path / "log.jsonl") == [{"step": 3, "event": "examples", "queries": QUERIES}]
    assert screen.getvalue() == ""


def test_an_event_that_quotes_a_password_is_logged_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_STORE_PASSWORD", "open sesame")
    monitor, screen = _monitor(tmp_path)
    with monitor:
        monitor.event(0, "skipped", {"why": "https://me:hunter2hunter2@store/x.tar: refused 'open sesame'"})
    text = (tmp_path / "log.jsonl").read_text() + screen.getvalue()
    assert "refused" in text
    assert "hunter2" not in text
    assert "sesame" not in text


def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.installed
def test_wandb_offline_leaves_one_run_that_a_resumed_stage_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in it neither a key of the recipe nor one of the environment, in any file."""
    _offline(monkeypatch)
    keys = ["0123456789abcdef" * 2 + "01234567", "hf_" + "Q" * 34, "plainpassphrase"]
    monkeypatch.setenv("WANDB_API_KEY", keys[0])
    monkeypatch.setenv("HF_TOKEN", keys[1])
    record = {"hub_token": keys[2], "source": {"url": f"https://u:{keys[2]}@host/", "header": keys[1]}, "seed": 41}
    folder = tmp_path / "myrun" / "refine"
    for start in (0, 2):
        with Monitor(folder, total=4, stage="refine", start=start, wandb=Wandb(), record=record) as monitor:
            for step in (start, start + 1):
                monitor.update(_update(step, losses={"default/infonce": 1.0}))
            monitor.examples(start, QUERIES)  # told late, of a step that W&B has closed
            monitor.event(start, "failed", {"why": f"{keys[0]} was refused"})
    identity = json.loads((folder / "wandb_run.json").read_text())["id"]
    runs = [p.name for p in (folder / "wandb").iterdir() if p.name.startswith("offline-run")]
    assert runs
    assert all(name.endswith(identity) for name in runs)
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert [key for key in keys if key.encode() in written] == []
    assert b"myrun/refine" in written  # the run's name
    assert b"losses/default/infonce" in written
    tables = [json.loads(p.read_text())["data"] for p in folder.rglob("*.table.json")]
    assert sorted(rows[1][:4] for rows in tables) == [[s, "web/0/3", "web", "Find the picture."] for s in (0, 2)]


@pytest.mark.installed
def test_wandb_that_cannot_begin_says_the_way_out_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")

    def refuse(**_: object) -> None:
        raise wandb.Error("key local-" + "0123456789" * 4 + "\nis not known")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"'refine': W&B .*\(key \(removed\) is not known\).*WANDB_MODE=offline"):
        Monitor(tmp_path / "refine", total=1, stage="refine", wandb=Wandb(mode="online"))
