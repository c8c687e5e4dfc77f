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

import pytest
from omni2vec.train.monitor import Monitor, Update, Wandb, keep_before, read_log
from omni2vec.train.redact import without_secrets
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


def test_fields_named_like_secrets_stay_at_home_and_token_counts_do_not() -> None:
    record = {"hub": {"hf_token": "x", "token": "x"}, "steps": [{"api_key": "x", "chunk_tokens": 5}], "max_tokens": 3}
    assert without_secrets(record) == {"hub": {}, "steps": [{"chunk_tokens": 5}], "max_tokens": 3}


@pytest.mark.installed
def test_wandb_offline_leaves_one_run_that_a_resumed_stage_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 2):
        with Monitor(tmp_path, total=4, start=start, wandb=Wandb(), record={"seed": 1}, terminal=False) as monitor:
            for step in (start, start + 1):
                monitor.update(_update(step))
    identity = json.loads((tmp_path / "wandb_run.json").read_text())["id"]
    runs = [p.name for p in (tmp_path / "wandb").iterdir() if p.name.startswith("offline-run")]
    assert runs
    assert all(name.endswith(identity) for name in runs)
