"""What a restart leaves behind, signals as a flag, out of memory told apart, and rows that are blamed."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from omni2vec.train.gather import Group
from omni2vec.train.guard import RESTART, Restart, Signals, smaller, wish, wished
from omni2vec.train.trouble import Patience, agree, blame, is_out_of_memory


def test_a_wish_is_read_once_and_leaves_nothing_behind(tmp_path):
    assert wished(tmp_path) is None
    wish(tmp_path, "out of memory", chunk_tokens=512)
    wish(tmp_path, "out of memory", chunk_tokens=256)
    assert wished(tmp_path, take=False) == wished(tmp_path) == {"why": "out of memory", "chunk_tokens": 256}
    assert wished(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_many_ranks_may_wish_at_once(tmp_path):
    ranks = [threading.Thread(target=wish, args=(tmp_path, "why"), kwargs={"rank": r}) for r in range(16)]
    for t in ranks:
        t.start()
    for t in ranks:
        t.join()
    assert wished(tmp_path)["rank"] in range(16)
    assert list(tmp_path.iterdir()) == []


def test_the_launcher_reads_the_status_without_torch():
    code = "import sys; from omni2vec.train.guard import RESTART; sys.exit(RESTART + ('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == RESTART
    assert Restart("why").why == "why"


def test_a_chunk_budget_is_halved_down_to_the_longest_item():
    assert [smaller(4096, 100), smaller(4097, 100), smaller(150, 100)] == [2048, 2048, 100]
    with pytest.raises(ValueError, match=r"stage 'train': out of memory with chunk_tokens=100, .*memory='vectors'"):
        smaller(100, 100, "train")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_becomes_a_flag_and_its_handler_comes_back(number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(1))
    try:
        with Signals() as signals:
            assert signals.asked == ""
            os.kill(os.getpid(), number)
            assert signals.asked == number.name
        assert not heard
        os.kill(os.getpid(), number)
        assert heard == [1]
    finally:
        signal.signal(number, before)


def test_in_another_thread_signals_are_left_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with Signals() as signals:
            found.append((signals.asked, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [("", before)]


def caught(work):
    try:
        work()
    except Exception as error:
        return error


def test_a_failed_allocation_is_out_of_memory_and_a_wrong_shape_is_not():
    real = caught(lambda: torch.empty(1 << 60, dtype=torch.uint8))  # torch's own words, of this version
    assert isinstance(real, RuntimeError)
    assert is_out_of_memory(real)
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        assert is_out_of_memory(error)
    wrapped = RuntimeError("a worker failed")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(caught(lambda: torch.ones(2) @ torch.ones(3)))
    assert not is_out_of_memory(ValueError("out of memory"))  # our own advice is no failed allocation


def test_one_process_agrees_with_itself_without_a_collective():
    group = Group()
    assert agree(group, torch.device("cpu"), asked=True, full=False) == {"asked": True, "full": False}
    assert group.calls == Counter()


def plan(rows=30):
    """Three entries a row: the query, then its two documents."""
    slots = [(q, 0) for q in range(rows)] + [(q, k) for q in range(rows) for k in (1, 2)]
    return SimpleNamespace(keys=tuple(f"s/0/{q}" for q in range(rows)), slots=tuple(slots))


def test_rows_whose_vectors_are_not_finite_are_named():
    vectors = torch.ones(90, 4)
    vectors[3, 2] = float("nan")  # query 3
    vectors[30 + 2 * 7 + 1, 0] = float("inf")  # the second document of row 7
    found = blame(vectors, {"default/infonce": float("nan")}, plan())
    assert found.event() == {"not_finite": "vectors", "rows": 2, "keys": ["s/0/3", "s/0/7"]}
    part = torch.tensor([59, 3, 45])  # in a chunk's order
    assert blame(vectors[part], {}, plan(), part).keys == ("s/0/3", "s/0/7")


def test_where_no_row_stands_out_the_batch_is_named_with_its_count():
    found = blame(torch.ones(90, 4), {"default/infonce": float("inf"), "default/nexttoken": 1.0}, plan())
    assert (found.what, found.count, len(found.keys)) == ("loss default/infonce", 30, 20)
    assert blame(torch.ones(90, 4), {"default/infonce": 1.0}, plan()).what == "gradient"


def test_patience_ends_with_the_twentieth_bad_step_in_a_row():
    patience = Patience("train")
    for step in range(19):
        patience.note(step, applied=False)
    patience.note(19, applied=True)
    for step in range(20, 39):
        patience.note(step, applied=False)
    with pytest.raises(ValueError, match=r"stage 'train': .* 20 steps in a row, up to step 39"):
        patience.note(39, applied=False)
