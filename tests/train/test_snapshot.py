"""Saving in the background: what is saved is the moment of the call; a full disk or a kill costs no earlier one."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from omni2vec.train import parts, resume, snapshot
from omni2vec.train.leave import Left
from omni2vec.train.resume import State, existing, load, path_of
from omni2vec.train.snapshot import NotSaved, Saver

from .shares import Share, net, on_ranks, whole

SCRIPT = Path(__file__).parent / "killed.py"


def weights(engine):
    return torch.cat([p.detach().flatten() for p in engine.net.parameters()])


def restored(folder):
    engine = Share(net(seed=1))
    load(engine, folder)
    return weights(whole([engine]))


def names(out):
    return sorted(p.name for p in (out / "checkpoints").iterdir())


@contextmanager
def held(monkeypatch):
    """Writers wait until the event is set."""
    go, real = threading.Event(), parts.write

    def write(path, blocks):
        assert go.wait(20)
        return real(path, blocks)

    monkeypatch.setattr(parts, "write", write)
    try:
        yield go
    finally:
        go.set()


def test_what_is_saved_is_the_moment_of_the_call(tmp_path, monkeypatch):
    engine = Share(net()).train(2)
    then, state = weights(engine), State(step=2)
    with held(monkeypatch) as go, Saver(engine, tmp_path) as saver:
        folder = saver.save(state)
        engine.train(3, first=2)
        state.step, state.best = 5, 0.5
        assert not folder.exists()
        go.set()
        saver.wait()
        assert torch.equal(restored(folder), then)
        assert resume.opened(folder).state == State(step=2)
    assert not torch.equal(weights(engine), then)


def test_a_save_waits_for_the_one_before_and_its_memory_serves_again(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "BLOCK", 64)  # most pieces lie in several blocks
    engine = Share(net()).train(1)
    with held(monkeypatch) as go, Saver(engine, tmp_path, keep=2) as saver:
        saver.save(State(step=1))
        threading.Timer(0.2, go.set).start()
        engine.train(1, first=1)
        begun = time.monotonic()
        saver.save(State(step=2))
        assert time.monotonic() - begun > 0.1
        held_at = [b.data_ptr() for b in saver._host.blocks]
        engine.train(1, first=2)
        saver.save(State(step=3))
        assert [b.data_ptr() for b in saver._host.blocks] == held_at
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    for step in (2, 3):
        assert torch.equal(restored(path_of(tmp_path, step)), weights(Share(net()).train(step)))


def test_a_step_that_is_saved_or_begun_is_not_saved_again(tmp_path, monkeypatch):
    calls, real = [], parts.write
    monkeypatch.setattr(parts, "write", lambda path, blocks: (calls.append(path.name), real(path, blocks))[1])
    with Saver(Share(net()), tmp_path) as saver:
        for background in (True, True, False, False):
            saver.save(State(step=1), background)
        assert existing(tmp_path) == [path_of(tmp_path, 1)]
    assert calls == ["part-00000-of-00001.safetensors", "state.json"]


def test_every_rank_leaves_its_part_and_nothing_else(tmp_path):
    def one(group):
        engine = Share(net(), group.rank, 3).train(1)
        with Saver(engine, tmp_path, group) as saver:
            for step in (1, 2):
                saver.save(State(step=step))
                saver.check()

    assert on_ranks(3, one) == [None] * 3
    (folder,) = existing(tmp_path)
    parts_there = [f"part-0000{r}-of-00003.safetensors" for r in range(3)]
    assert sorted(p.name for p in folder.iterdir()) == [*parts_there, "state.json"]
    assert names(tmp_path) == ["step-00000002"]


@contextmanager
def size_limit(count):
    """The kernel lets no file of this process grow beyond `count` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_grow_leaves_the_last_good_checkpoint_and_names_it(tmp_path):
    engine = Share(net(width=9000)).train(1)  # parts of 970 kB
    with Saver(engine, tmp_path) as saver:
        saver.save(State(step=200), background=False)
        engine.train(1, first=1)
        with size_limit(500_000):
            saver.save(State(step=300))
            with pytest.raises(
                NotSaved,
                match=r"no room for checkpoint step 300 in .*checkpoints \(.*File too large; it needs 1 MB\): the last "
                r"good one is step-00000200; free 1 MB \(or raise the quota\) and run again",
            ):
                saver.wait()
    assert names(tmp_path) == ["step-00000200"]
    again = Share(net(seed=1, width=9000))
    load(again, path_of(tmp_path, 200))
    assert torch.equal(weights(whole([again])), weights(Share(net(width=9000)).train(1)))


def full_after(monkeypatch, count, failing):
    """Files in whose path `failing` stands find the disk full behind `count` bytes."""
    real = Path.open

    class Full:
        def __init__(self, file):
            self.file, self.left = file, count

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    def opened(self, mode="r", *args, **kwargs):
        file = real(self, mode, *args, **kwargs)
        return Full(file) if failing in str(self) and "w" in mode else file

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize(
    ("failing", "who"),
    [("part-00000", 0), ("part-00001", 1), ("step-00000300.", 1), ("state.json", 0)],
)
def test_a_full_disk_on_any_rank_ends_all_and_one_says_why(tmp_path, monkeypatch, failing, who):
    def one(group):
        engine = Share(net(), group.rank, 2).train(1)
        with Saver(engine, tmp_path, group) as saver:
            saver.save(State(step=200), background=False)
            group.exchange(b"")
            if group.rank == 0:
                full_after(monkeypatch, 100, failing)
            group.exchange(b"")
            saver.save(State(step=300))
            for _ in range(2000):
                time.sleep(0.005)  # training goes on
                saver.check()

    first, second = on_ranks(2, one)
    assert isinstance(first, NotSaved)
    assert f"(rank {who}: [Errno 28] No space left on device; it needs 1 MB)" in str(first)
    assert "the last good one is step-00000200; free 1 MB" in str(first)
    assert isinstance(second, Left)
    assert names(tmp_path) == ["step-00000200"]
    monkeypatch.undo()
    assert resume.opened(path_of(tmp_path, 200)).state == State(step=200)


def test_an_error_that_is_no_lack_of_room_is_said_as_it_is(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    saver = Saver(Share(net()), tmp_path)
    with pytest.raises(NotSaved, match=r"step 1 in .* could not be written \(.*directory.*\): there is none before it"):
        saver.save(State(step=1), background=False)


def test_an_error_in_training_still_ends_the_save_that_was_begun(tmp_path):
    engine = Share(net()).train(1)
    with pytest.raises(ValueError, match="a bad row"), Saver(engine, tmp_path) as saver:
        saver.save(State(step=1))
        raise ValueError("a bad row")
    assert torch.equal(restored(path_of(tmp_path, 1)), weights(engine))


def test_an_error_in_training_waits_for_no_rank_that_is_gone(tmp_path):
    def one(group):
        engine = Share(net(), group.rank, 2)
        saver = Saver(engine, tmp_path, group, patience_s=0.2)
        if group.rank == 1:
            return
        with saver:
            saver.save(State(step=1))  # rank 1 is no longer there
            raise ValueError("a bad row")

    begun = time.monotonic()
    first, _ = on_ranks(2, one)
    assert str(first) == "a bad row"
    assert time.monotonic() - begun < 5
    assert existing(tmp_path) == []


def test_a_kill_at_any_moment_of_a_save_leaves_whole_checkpoints_only():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a kill loses no page: a disk would only be slower
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        done = subprocess.run(
            [sys.executable, SCRIPT, folder], capture_output=True, text=True, timeout=100, env=environment
        )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told) > 15  # before, between and behind the pieces of a part, its marker, the record, the renames
    assert [t["died"] for t in told] == [True] * (len(told) - 1) + [False]
    assert all(t["right"] for t in told)
    assert all(t["after"] == ["step-00000003"] for t in told)
    first, second = ["step-00000001"], ["step-00000001", "step-00000002"]
    there = [t["there"] for t in told]
    border = there.index(second)
    assert there[:border] == [first] * border
    assert there[-1] == ["step-00000002"]
    assert all(t in (second, second[1:]) for t in there[border:])
