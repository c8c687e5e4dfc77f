"""A rank that hangs is named with its function, by one rank alone; what is slow by right is left alone."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from omni2vec.train.guard import RESTART
from omni2vec.train.watchdog import Watchdog

from .. import ranks

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    root = str(HERE.parent.parent)
    return ranks.run(HERE / "stalled.py", 2, tmp_path_factory.mktemp("stalled"), timeout=120, env={"PYTHONPATH": root})


def test_the_rank_that_is_behind_is_named_with_its_section_and_function(said):
    (((behind, step, where, text),), silent) = (r["behind"]["heard"] for r in said)
    assert (behind, step, where, silent) == ([1], 2, "forward", [])
    assert "rank 1 (host " in text
    assert "is behind: step 2, forward, in decode_a_broken_film (" in text
    assert "rank 0" not in text


def test_of_ranks_in_the_same_section_the_one_that_waits_for_nobody_is_named(said):
    ((behind, _, where, text),) = said[0]["same"]["heard"]
    assert (behind, where) == ([1], "gather")
    assert "decode_a_broken_film" in text


def test_every_rank_leaves_its_stack(said):
    assert "decode_a_broken_film" in said[1]["behind"]["stacks"]
    assert "all_reduce" in said[0]["behind"]["stacks"]
    assert "rank 1, step 2, forward" in said[1]["behind"]["stacks"]


def test_a_section_may_be_allowed_more_and_nothing_is_left_behind(said):
    assert [r["slow"]["heard"] for r in said] == [0, 0]
    assert said[0]["slow"]["left"] == []


def test_the_limit_follows_the_median_step(tmp_path):
    with Watchdog(0, 1, tmp_path) as dog:
        assert dog.limit == 1800  # the first steps compile and warm up
        dog._times.extend([50.0, 60.0, 4000.0])
        assert dog.limit == 600
        dog.beat(5, "save", allow_s=3600)
        assert dog.limit == 3600
        dog.beat(5, "data")
        dog._times.extend([1.0] * 10)
        assert dog.limit == 300


def test_a_rank_that_is_gone_is_named_as_such(tmp_path):
    heard = []
    with Watchdog(0, 2, tmp_path, limit_s=0.3, every_s=0.1, tell=heard.append):
        (tmp_path / "ranks" / "rank-00001.json").write_text(
            '{"rank": 1, "host": "node-7", "pid": 42, "step": 3, "where": "data", "beats": 9, "ticks": 5, "stack": []}'
        )
        time.sleep(2.5)
    (stall,) = heard  # repeated rarely
    assert stall.ranks == (1,)
    assert "rank 1 (host node-7, process 42) gives no sign of life" in stall.text


def test_where_asked_to_a_stalled_rank_exits_for_a_restart(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from omni2vec.train.watchdog import Watchdog\n"
        "with Watchdog(0, 1, Path(sys.argv[1]), limit_s=0.3, every_s=0.1, kill=True): time.sleep(30)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, timeout=25, capture_output=True, text=True
    )
    assert done.returncode == RESTART
    assert "no progress for" in done.stderr
