"""A long search: equal to one call on any number of ranks, resumed after a kill, never from windows of other inputs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omni2vec.data.types import DataError
from omni2vec.eval.approximate import Approximate
from omni2vec.eval.matrix import Mapped, write
from omni2vec.eval.nearest import Exact, nearest
from omni2vec.train import searching
from omni2vec.train.gather import Group
from omni2vec.train.guard import Restart, Signals
from omni2vec.train.searching import found_share, searched
from safetensors import safe_open

from ..ranks import run

SCRIPT = Path(__file__).parent / "ranks_of_searching.py"
K = 7


def vectors(count, seed, levels=0):
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(count, 16, generator=generator)
    if levels:
        out = out[torch.randint(0, levels, (count,), generator=generator)]
    return torch.nn.functional.normalize(out, dim=1)


@pytest.fixture
def pair():
    return vectors(300, 1), vectors(2000, 2, levels=900)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(searching, "WINDOW", 64)


def whole(windows):
    parts = list(windows)
    assert [start for start, _, _ in parts] == list(range(0, windows.count, 64))
    return torch.cat([index for _, index, _ in parts]), torch.cat([scores for _, _, scores in parts])


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def search(out, query, docs, how=Exact(), **settings):  # noqa: B008
    return searched(out, query, docs, K, how, Group(), Signals(), **settings)


def count(monkeypatch):
    """The windows that are searched from here on."""
    seen, real = [], searching._window
    monkeypatch.setattr(searching, "_window", lambda at, starts, *rest: (seen.extend(starts), real(at, starts, *rest)))
    return seen


def on_disk(folder, query, docs):
    for name, rows in (("query", query), ("docs", docs)):
        write(folder / f"{name}.safetensors", [rows], tuple(rows.shape))


def test_windows_together_are_the_search_in_one_call(tmp_path, pair):
    done = []
    windows = search(tmp_path, *pair, advance=done.append)
    assert same(whole(windows), nearest(*pair, K))
    assert len(windows) == 5 and done == [0, 64, 64, 64, 64, 44]
    for start, stop in ((0, 300), (60, 70), (64, 128), (299, 300)):
        assert same(windows.rows(start, stop), [t[start:stop] for t in nearest(*pair, K)])
    windows.forget()
    assert not list(tmp_path.iterdir())


def test_hidden_documents_are_asked_for_by_the_number_of_the_query(tmp_path, pair):
    gone = torch.rand(300, 2000, generator=torch.Generator().manual_seed(0)) < 0.3
    hidden = lambda rows, columns: gone[rows, columns]  # noqa: E731
    windows = search(tmp_path, *pair, how=Exact(rows=20, columns=64), hidden=hidden)
    assert same(whole(windows), nearest(*pair, K, hidden=hidden))
    how = Approximate(lists=16, probes=16, train_rows=1024, rescore=250)
    assert same(whole(search(tmp_path / "faiss", *pair, how=how, hidden=hidden)), nearest(*pair, K, hidden=hidden))


def test_of_ended_work_only_the_missing_windows_are_done_again(tmp_path, pair, monkeypatch):
    first = whole(search(tmp_path, *pair))
    folder = tmp_path / searching.FOLDER
    (folder / "000000000064.safetensors").unlink()
    (folder / "000000000256.safetensors").write_bytes(b"cut off")
    seen, done = count(monkeypatch), []
    assert same(whole(search(tmp_path, *pair, advance=done.append)), first)
    assert seen == [64, 256] and done == [192, 64, 44]


@pytest.mark.parametrize("what", ["query", "docs", "k", "how", "about", "window"])
def test_windows_of_other_inputs_are_not_used(tmp_path, pair, monkeypatch, what):
    query, docs = (rows.clone() for rows in pair)
    search(tmp_path, query, docs)
    seen = count(monkeypatch)
    search(tmp_path, query, docs)
    assert not seen
    if what == "query":
        query[299, 15] += 1e-6
    if what == "docs":
        docs[1999, 15] += 1e-6
    if what == "window":
        monkeypatch.setattr(searching, "WINDOW", 100)
    if what == "k":
        monkeypatch.setitem(globals(), "K", 6)
    how = Exact(rows=3) if what == "how" else Exact()
    windows = search(tmp_path, query, docs, how, about="labels" if what == "about" else "")
    assert len(seen) == len(windows) == (3 if what == "window" else 5)


def test_asked_to_end_it_ends_between_windows_and_says_where_they_are(tmp_path, pair):
    signals = Signals()

    def ask(done):
        if done:
            signals.asked = "SIGTERM"

    with pytest.raises(Restart, match=r"asked to end by SIGTERM; what is found so far is kept in .*search"):
        searched(tmp_path, *pair, K, Exact(), Group(), signals, advance=ask)
    assert [p.name for p in (tmp_path / searching.FOLDER).iterdir()] == ["000000000000.safetensors"]


@pytest.mark.parametrize("kind", ["exact", "approximate"])
def test_killed_and_started_again_it_is_equal_to_one_that_was_not(tmp_path, pair, kind):
    if kind == "approximate":
        pytest.importorskip("faiss", reason="faiss is not installed")
    on_disk(tmp_path, *pair)
    env = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RESULT")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(tmp_path / "killed"), kind, "3"]
    assert subprocess.run(command, env=env, check=False).returncode == -9
    folder = tmp_path / "killed" / searching.FOLDER
    there = sorted(p.name for p in folder.glob("*.safetensors"))
    assert there == ["000000000000.safetensors", "000000000064.safetensors"]
    times = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    how = Exact() if kind == "exact" else Approximate(lists=16, probes=4, train_rows=1024)
    resumed = search(
        tmp_path / "killed", *(Mapped(tmp_path / f"{name}.safetensors") for name in ("query", "docs")), how
    )
    kept = there if kind == "exact" else [*there, "index.faiss"]
    assert all((folder / name).stat().st_mtime_ns == times[name] for name in kept)
    assert same(whole(resumed), whole(search(tmp_path / "straight", *pair, how=how)))
    assert not list(folder.glob(".*.part"))


@pytest.mark.parametrize("kind", ["exact", "approximate"])
def test_two_ranks_find_what_one_finds_each_a_window_in_turn(tmp_path, pair, kind):
    if kind == "approximate":
        pytest.importorskip("faiss", reason="faiss is not installed")
    on_disk(tmp_path, *pair)
    said = run(SCRIPT, 2, tmp_path, tmp_path / "two", kind, 0, timeout=60)
    assert said == [{"done": 300, "searched": [0, 128, 256]}, {"done": 300, "searched": [64, 192]}]
    how = Exact() if kind == "exact" else Approximate(lists=16, probes=4, train_rows=1024)
    one = whole(search(tmp_path / "one", *pair, how=how))
    assert same(whole(searching.Windows(tmp_path / "two" / searching.FOLDER, 300, K, 64)), one)


def test_a_window_that_another_rank_wrote_elsewhere_is_told(tmp_path, pair, monkeypatch):
    windows = search(tmp_path, *pair)
    with safe_open(windows.folder / "000000000000.safetensors", framework="pt") as file:
        digest = file.metadata()["inputs"]
    monkeypatch.setattr(searching, "_LATE_S", 0.0)
    searching._wait(windows, digest)
    (windows.folder / "000000000064.safetensors").unlink()
    with pytest.raises(DataError, match=r"000000000064\.safetensors: another rank has written it.*one shared folder"):
        searching._wait(windows, digest)


def test_bad_vectors_end_all_ranks_with_their_row(tmp_path, pair):
    pair[1][5, 0] = float("nan")
    with pytest.raises(ValueError, match="docs: row 5 of 2000 holds NaN"):
        search(tmp_path, *pair)


def test_the_share_found_is_one_for_an_exact_search_and_less_for_few_probes(tmp_path, pair):
    pytest.importorskip("faiss", reason="faiss is not installed")
    assert found_share(search(tmp_path / "e", *pair), *pair, sample=100) == 1
    few = Approximate(lists=32, probes=1, train_rows=2000, rescore=1)
    assert 0.1 < found_share(search(tmp_path / "a", *pair, how=few), *pair, sample=100) < 0.9
