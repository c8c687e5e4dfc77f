"""The watchdog of one rank: its limit, a rank that is gone, an exit where it is asked for."""

import subprocess
import sys
import time

from omni2vec.train.guard import RESTART
from omni2vec.train.watchdog import Watchdog


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


def test_files_of_ranks_that_are_no_more_go(tmp_path):
    (tmp_path / "ranks").mkdir()
    for name in ("rank-00003.json", "rank-00003.stack.txt"):
        (tmp_path / "ranks" / name).write_text("{}")
    with Watchdog(0, 2, tmp_path):
        assert not list((tmp_path / "ranks").glob("rank-00003*"))
    assert list(tmp_path.iterdir()) == []
