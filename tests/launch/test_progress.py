"""`omni2vec show RUN`: the log as it grows, how far a run is, and a page that fits its terminal."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from omni2vec.data.types import DataError
from omni2vec.launch.cli import app
from omni2vec.launch.logs import Log, chosen, is_run, logs_of
from omni2vec.launch.page import page
from omni2vec.launch.progress import show
from omni2vec.train.monitor import Monitor, Update, keep_before
from rich.console import Console
from typer.testing import CliRunner

SPLIT = {"other": 0.001, "data": 0.5, "forward": 1.0, "backward": 2.5}


def _trained(folder: Path, steps: int, total: int, **more: Any) -> Path:
    monitor = Monitor(folder, total=total, peak=1e12, console=Console(file=io.StringIO()))
    monitor.event(0, "start", {"memory": "boundaries", "chunk_tokens": 512})
    for s in range(steps):
        look = s % 5 == 0
        values: dict[str, Any] = {
            "loss": math.nan if s == 7 else 4.0 / (s + 1),
            "norm": math.inf if s == 7 else 1.0 + s % 3,
            "accuracy": s / total if look else math.nan,
            "effective_rank": 3.0 + s if look else math.nan,
            "source_losses": {"web/pictures": 2.0 / (s + 1), "sts": 1.0} if look else {},
            "scale": 50.0,
            **more,
        }
        update = Update(step=s, lr=1e-4 * (s + 1), tokens=1000, seconds=4.0, rows=32, times=SPLIT, world=2, **values)
        monitor.update(update)
    monitor.event(max(steps - 1, 0), "evaluation", {"mean": 0.25, "broken": math.nan})
    monitor.close()
    return folder / "log.jsonl"


def _text(log: Log, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, legacy_windows=False)
    console.print(page(log.read(), console))
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_the_page_says_how_far_the_run_is_and_what_went_wrong(tmp_path: Path) -> None:
    text = _text(Log(_trained(tmp_path / "mine" / "refine.partial", 25, 100, skipped_rows=1, skipped_steps=3)), 100)
    assert "mine / refine  running" in text
    assert "25/100 steps  0:01:40 spent  0:05:00 left" in text
    assert "25k tokens, 800 rows, 2 ranks; 1 row skipped, 3 steps skipped" in text
    for title in ("loss", "in-batch accuracy", "learning rate", "gradient norm", "effective rank"):
        assert title in text
    assert "web/pictures" in text
    assert "forward 25% 1,000 ms" in text
    assert text.index("backward 62%") < text.index("other 0% 1.0 ms")  # whatever came first in the record
    assert "temperature 0.02" in text  # it never changed: no curve
    assert text.count("×") >= 2  # the loss and the norm of step 7
    assert "evaluation  mean 0.25, broken nan" in text


@pytest.mark.parametrize("width", [80, 100, 120, 160, 200])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    log = Log(_trained(tmp_path / "mine" / "refine", 30, 30))
    for encoding in ("utf-8", "ascii"):
        lines = _text(log, width, encoding).splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) < 60


@pytest.mark.parametrize("height", [20, 24, 40, 60, 100])
def test_while_it_is_followed_the_page_is_no_higher_than_the_terminal(tmp_path: Path, height: int) -> None:
    log = Log(_trained(tmp_path / "mine" / "refine", 30, 30)).read()
    screen = io.StringIO()
    console = Console(file=screen, width=80, height=height, force_terminal=True, color_system=None)
    console.print(page(log, console, ["warm"], fit=True))
    lines = screen.getvalue().splitlines()
    assert height // 2 < len(lines) < height or height == 100
    assert "30/30 steps" in lines[1]
    assert "in-batch accuracy" in screen.getvalue()
    assert ("web/pictures" in screen.getvalue()) == (height >= 60)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_run_that_has_just_begun_has_a_page_too(tmp_path: Path, steps: int) -> None:
    text = _text(Log(_trained(tmp_path / "mine" / "refine.partial", steps, 100)), 80)
    assert ("No step is done yet." in text) == (steps == 0)
    assert "start  memory boundaries, chunk_tokens 512" in text


def test_a_log_of_old_or_odd_records_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step":0,"loss":"nan"}\n{"step":1,"loss":null,"times":3,"losses":[]}\n[1]\n{"no":1}\n{"step":2,"loss":"-inf"}\n'
    )
    log = Log(tmp_path / "log.jsonl").read()
    assert (len(log.steps), log.unreadable) == (3, 2)
    assert "2 unreadable lines in the log" in _text(log, 80)


def test_a_growing_log_is_read_as_one_that_is_whole(tmp_path: Path) -> None:
    whole = _trained(tmp_path / "a", 20, 40).read_bytes()
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"")
    log = Log(path)
    for end in range(0, len(whole), 97):  # lines are cut wherever it happens
        path.write_bytes(whole[:end]) if end == 0 else _append(path, whole[end - 97 : end])
        log.read()
    _append(path, whole[len(whole) // 97 * 97 :] if len(whole) % 97 else whole[-97:])
    log.read()
    once = Log(tmp_path / "a" / "log.jsonl").read()
    assert (log.steps, log.events, log.unreadable) == (once.steps, once.events, 0)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_a_log_that_a_resumed_stage_cut_back_is_read_anew(tmp_path: Path) -> None:
    path = _trained(tmp_path, 20, 40)
    log = Log(path).read()
    keep_before(path, 10)
    assert log.done == 20
    assert log.read().done == 10
    assert [r["step"] for r in log.steps] == list(range(10))


def test_a_stage_is_done_running_or_stopped(tmp_path: Path) -> None:
    path = _trained(tmp_path / "refine.partial", 5, 10)
    assert Log(path).read().state == "running"
    long_ago = path.stat().st_mtime - 3600
    os.utime(path, (long_ago, long_ago))
    stopped = Log(path).read()
    assert stopped.state == "stopped"
    assert "last heard 1:00:0" in _text(stopped, 120)
    (tmp_path / "refine.partial").rename(tmp_path / "refine")
    (tmp_path / "refine" / "done.json").write_text("{}")
    assert Log(tmp_path / "refine" / "log.jsonl").read().state == "done"


def test_of_several_stages_the_last_that_wrote_is_shown_or_the_one_that_is_named(tmp_path: Path) -> None:
    for name, age in (("warm", 100), ("refine.partial", 10), ("later", 50)):
        path = _trained(tmp_path / name, 3, 3)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    (tmp_path / "world").mkdir()
    found = logs_of(tmp_path)
    assert chosen(found, "").parent.name == "refine.partial"
    assert chosen(found, "refine").parent.name == "refine.partial"
    assert chosen(found, "warm").parent.name == "warm"
    assert is_run(tmp_path)
    assert not is_run(tmp_path / "world")
    with pytest.raises(DataError, match="--stage war: no log of it here; there are warm, later, refine"):
        chosen(found, "war")
    with pytest.raises(DataError, match=r"no log\.jsonl in it"):
        logs_of(tmp_path / "world")


def test_following_a_done_stage_says_its_end_in_one_plain_line(tmp_path: Path) -> None:
    _trained(tmp_path / "mine" / "refine", 30, 30)
    screen = io.StringIO()
    show(tmp_path / "mine", Console(file=screen, width=80), follow=True)
    (line,) = screen.getvalue().splitlines()
    assert line.startswith("refine 30/30  loss 0.133")
    assert line.endswith("done")


def test_examples_are_told_in_words(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "refine", total=2, console=Console(file=io.StringIO()))
    hits = [{"document": "a positive 0", "score": 0.9, "right": True, "text": "a mug\nand a cup"}]
    monitor.update(Update(0, 1.0, 1e-3, 10, 0.1))
    monitor.examples(0, [{"query": "web/0/3", "source": "web", "text": "what holds tea", "found": hits}])
    monitor.close()
    text = _text(Log(tmp_path / "refine" / "log.jsonl"), 80)
    assert "? what holds tea  web" in text
    assert "0.900 ✓ a mug and a cup" in text
    assert "queries" not in text.split("what queries find")[1]  # it is no event for the list below


def test_the_command_shows_a_run(tmp_path: Path) -> None:
    _trained(tmp_path / "mine" / "refine", 30, 30)
    result = CliRunner().invoke(app, ["show", str(tmp_path / "mine")])
    assert result.exit_code == 0
    assert "mine / refine  done" in result.output
    one = CliRunner().invoke(app, ["show", str(tmp_path / "mine" / "refine"), "--follow"])
    assert one.output.startswith("refine 30/30")


def test_json_infinities_come_back_as_numbers(tmp_path: Path) -> None:
    path = _trained(tmp_path, 10, 10)
    assert json.loads(path.read_text().splitlines()[8])["norm"] == "inf"
    steps, values = Log(path).read().series("norm")
    assert steps == list(range(10))
    assert values[7] == math.inf
