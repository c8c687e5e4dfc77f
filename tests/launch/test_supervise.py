"""Ranks of a step as plain processes: ended together, sent our signals, and what their ends mean."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from omni2vec.launch.supervise import HEADING, Grace, Rank, Signals, listening, supervise, verdict
from omni2vec.train.guard import RESTART

QUICK = Grace(saving_s=2.0, failure_s=0.3, term_s=0.3)


def ranks(*scripts, log=None):
    return [Rank(i, ("sh", "-c", s), dict(os.environ), log) for i, s in enumerate(scripts)]


def gone(pid):
    """Whether a process ends within two seconds; one that nobody has collected yet has ended."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(40):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_ranks_that_end_well_are_awaited():
    assert supervise(ranks("exit 0", "sleep 0.3"), Signals()) == {0: 0, 1: 0}


def test_when_one_fails_the_others_get_a_grace_and_then_are_ended():
    begun = time.monotonic()
    assert supervise(ranks("exit 3", "sleep 60"), Signals(), QUICK) == {0: 3}
    assert 0.3 <= time.monotonic() - begun < 5


def test_one_that_leaves_by_itself_within_the_grace_keeps_its_status():
    assert supervise(ranks("exit 3", "sleep 0.1; exit 4"), Signals(), QUICK) == {0: 3, 1: 4}


def test_one_that_does_not_heed_sigterm_is_killed():
    begun = time.monotonic()
    assert supervise(ranks("exit 3", "trap '' TERM; while :; do sleep 0.1; done"), Signals(), QUICK) == {0: 3}
    assert time.monotonic() - begun < 5


def test_after_a_signal_the_others_may_save_longer():
    slow = f"trap 'sleep 1; exit {RESTART}' USR1; while :; do sleep 0.05; done"
    quick = f"trap 'exit {RESTART}' USR1; while :; do sleep 0.05; done"
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
    with listening() as signals:
        assert supervise(ranks(quick, slow), signals, QUICK) == {0: RESTART, 1: RESTART}


def test_a_killed_rank_shows_as_its_signal():
    assert supervise(ranks("kill -9 $$", "sleep 0.1"), Signals(), QUICK) == {0: -9, 1: 0}


def test_a_failure_elsewhere_ends_the_ranks_here():
    assert supervise(ranks("sleep 60"), Signals(), QUICK, elsewhere=lambda: 1) == {}


def test_the_first_bad_status_is_told_once():
    told = []
    supervise(ranks("exit 3", "sleep 0.2; exit 4"), Signals(), QUICK, bad=told.append)
    assert told == [3]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_rank_leaves_behind_is_ended_too(tmp_path):
    supervise(ranks(f"sleep 60 & echo $! >{tmp_path}/pid; exit 0"), Signals())
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(("sent", "got"), [(signal.SIGUSR1, "USR1"), (signal.SIGTERM, "TERM"), (signal.SIGINT, "TERM")])
def test_our_signals_reach_every_rank_which_may_take_its_time(tmp_path, sent, got):
    script = "trap 'sleep 0.5; echo {n} >>{f}; exit 75' {n}; while :; do sleep 0.05; done"
    scripts = [script.format(n=got, f=tmp_path / str(i)) for i in range(2)]
    threading.Timer(0.3, lambda: os.kill(os.getpid(), sent)).start()
    with listening() as signals:
        assert supervise(ranks(*scripts), signals, QUICK) == {0: 75, 1: 75}
    assert signals.seen == [sent]
    assert [(tmp_path / str(i)).read_text() for i in range(2)] == [f"{got}\n"] * 2


def test_the_same_signal_again_ends_them_at_once():
    stubborn = "trap '' TERM; while :; do sleep 0.05; done"
    for delay in (0.2, 1.4):
        threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with listening() as signals:
        assert supervise(ranks(stubborn), signals) == {}
    assert signals.insists


def test_handlers_are_back_afterwards():
    before = signal.getsignal(signal.SIGUSR1)
    with listening():
        assert signal.getsignal(signal.SIGUSR1) != before
    assert signal.getsignal(signal.SIGUSR1) == before


def test_words_of_a_rank_go_into_its_log_one_try_behind_the_other(tmp_path):
    log = tmp_path / "logs" / "rank-1.log"
    for _ in range(2):
        supervise(ranks("echo out; echo err >&2", log=log), Signals())
    lines = log.read_text().splitlines()
    assert [lines[1:3], lines[4:]] == [["out", "err"]] * 2
    assert all(line.startswith(HEADING) and line.endswith(f"on host {os.uname().nodename}") for line in lines[::3])


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_a_rank_dies_with_its_starter(tmp_path):
    rank = (
        "import os, time; from omni2vec.launch.supervise import follow_starter; follow_starter(); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    starter = (
        "import os, sys; from omni2vec.launch.supervise import *; "
        f"supervise([Rank(0, (sys.executable, '-c', {rank!r}), dict(os.environ))], Signals())"
    )
    process = subprocess.Popen([sys.executable, "-c", starter])
    end = time.monotonic() + 20
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert gone(int((tmp_path / "pid").read_text()))


INPUT = {"rank": 1, "kind": "input", "status": 2, "error": "rows.jsonl, line 7: not JSON"}
LOST = {"rank": 0, "kind": "connection", "status": 1, "error": "Connection closed by peer"}
WISHED = {"rank": 1, "kind": "restart", "status": 75, "error": "out of memory"}


@pytest.mark.parametrize(
    ("statuses", "heard", "claim", "kind", "why", "status"),
    [
        ({0: 0, 1: 0}, [], None, "done", "", 0),
        ({0: 1, 1: 2}, [], INPUT, "failed", "rows.jsonl, line 7: not JSON", 2),
        ({0: -6, 1: 2}, [], INPUT, "failed", "rows.jsonl, line 7: not JSON", 2),  # NCCL aborts behind it
        ({0: 75, 1: 75}, [], WISHED, "restart", "out of memory", 75),
        ({0: 75, 1: 75}, [signal.SIGUSR1], WISHED, "stopped", "SIGUSR1", 75),
        ({0: 75, 1: 75}, [signal.SIGINT], None, "stopped", "SIGINT", 130),
        ({0: 1, 1: -9}, [], LOST, "restart", "rank 1 was ended by SIGKILL", 1),
        ({0: -6, 1: -9}, [], None, "restart", "rank 1 was ended by SIGKILL", 1),
        ({0: 1, 1: 1}, [], LOST, "restart", "Connection closed by peer", 1),
        ({0: 0, 1: 3}, [], None, "failed", "rank 1 ended with status 3", 1),
    ],
)
def test_the_ends_of_ranks_have_one_meaning(statuses, heard, claim, kind, why, status):
    end = verdict(statuses, heard, claim)
    assert (end.kind, end.why, end.status) == (kind, why, status)
