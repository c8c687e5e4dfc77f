"""What the doctor says of several ranks: whether they agree, keep one time and reach each other."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from omni2vec.launch import doctor_ranks as doctor
from omni2vec.launch.board import joined, opened
from omni2vec.launch.links import Link, slow
from omni2vec.launch.place import Place

GROUP = Path(__file__).parent / "group_recipe.py"


def examined(*words, **environment):
    command = [sys.executable, "-m", "omni2vec", "doctor", *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def test_two_equal_ranks_are_sound_and_their_link_is_measured(tmp_path):
    done = examined(GROUP, "--ranks", 2, "--into", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("2 on 1 host", "the same: python", "all within 0.0", "GB/s a rank", "links within a host"):
        assert line in done.stdout
    assert "FAULT" not in done.stdout and done.stdout.count("clocks") == 1  # one table, rank 0's


def test_a_rank_with_other_data_is_named_and_nothing_is_measured(tmp_path):
    done = examined(GROUP, "--ranks", 2, "--into", tmp_path, TOY_DATA_1="9")
    assert done.returncode == 1
    assert 'add.rows is "9", but "0123" on rank 0' in done.stdout and "all-reduce" not in done.stdout


def test_a_recipe_without_ranks_is_told_what_it_wants():
    assert "give --ranks N" in examined(GROUP).stderr


ROWS = [("a", {"torch": "2.14", "recipe.train.lr": "1", "data.train.rows": "x"})] * 2


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"torch": "2.13"}, "versions"), ({"recipe.train.lr": "2"}, "recipe"), ({"data.train.rows": "y"}, "data")],
)
def test_each_difference_is_told_under_its_name_with_a_remedy(changed, what):
    rows = [*ROWS, ("b", ROWS[0][1] | changed)]
    found = list(doctor._ground(rows, doctor.Question(GROUP)))
    (wrong,) = [f for f in found if f.grade == "blocker"]
    assert wrong.what == what and "rank 2 on host b" in wrong.found and wrong.remedy
    assert len(found) == 3


def test_a_recipe_that_no_rank_can_read_is_a_fault():
    rows = [("a", {"torch": "2.14", "recipe": "not to be read here (no such file)"})] * 2
    found = {f.what: f for f in doctor._ground(rows, doctor.Question(GROUP))}
    assert found["recipe"].grade == "blocker" and "no such file" in found["recipe"].found


def test_clocks_apart_are_told_by_rank_host_and_direction():
    (ahead, behind) = doctor._clocks(["a", "b", "c"], [(0, 0), (4.2, 0.01), (-2.0, 0.01)])
    assert ahead.found == "rank 1 on host b is 4.2 s ahead" and behind.found == "rank 2 on host c is 2.0 s behind"
    assert ahead.grade == "note" and "time server" in ahead.remedy


def test_a_slow_answer_is_no_wrong_clock():
    (found,) = doctor._clocks(["a", "b"], [(0, 0), (1.5, 1.0)])
    assert found.grade == "good"


def test_a_clock_is_measured_over_the_board():
    board, port = opened()
    other = joined(Place(1, 2, 1, 2, "127.0.0.1", port))  # a connection of its own: one answers one thread at a time
    thread = threading.Thread(target=doctor._answer, args=(other, 1))
    thread.start()
    (_, (ahead, half)) = doctor._offsets(board, 2)
    thread.join()
    assert abs(ahead) < 0.5 and 0 <= half < 0.5


def ring(*speeds, hosts="aabb"):
    n = len(speeds)
    return [Link(r, hosts[r], (r + 1) % n, hosts[(r + 1) % n], s) for r, s in enumerate(speeds)]


def test_a_link_slower_than_half_of_its_kind_is_named():
    links = ring(100, 100, 100, 30, hosts="aaaa")
    assert [str(link) for link in slow(links)] == ["rank 3 on a to rank 0 on a: 30 GB/s"]


def test_a_link_between_hosts_is_not_compared_with_one_within():
    assert slow(ring(100, 20, 100, 20)) == []


def test_slow_gpu_links_are_told_in_plain_words():
    found = {f.what: f for f in doctor._speeds({1 << 20: 0.2}, ring(4, 0.1, 5, 0.12), True)}
    assert found["links within a host"].grade == "note" and "PCIe" in found["links within a host"].remedy
    assert found["links between hosts"].found == "0.1 to 0.12 GB/s"
    assert "plain Ethernet" in found["links between hosts"].remedy
