"""Where the loader's work is done: at once in this process, or in worker processes. Both give the same futures.

Workers come from a fork server, which is started fresh: forking this process would copy locks that its threads
(torch's, the tokenizer's) may hold. So a script that trains with workers needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar

_FILES = 1 << 16
W = TypeVar("W")
W_co = TypeVar("W_co", covariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Later(Protocol[R_co]):
    """A result to come."""

    def ready(self) -> bool:
        """Whether `get` would return at once."""
        ...

    def get(self) -> R_co: ...


class Crew(Protocol[W_co]):
    """Runs `method(work, *args)` of one unchanging piece of work, given once."""

    def submit(self, method: Callable[..., R], *args: object) -> Later[R]: ...

    def close(self) -> None: ...


class Inline(Crew[W]):
    """No workers: each result is made when it is asked for, so nothing is held ahead of its use."""

    def __init__(self, work: W) -> None:
        self.work = work

    def submit(self, method: Callable[..., R], *args: object) -> Later[R]:
        return _Inline(lambda: method(self.work, *args))

    def close(self) -> None:
        """Nothing to end."""


class _Inline(Later[R]):
    def __init__(self, make: Callable[[], R]) -> None:
        self.make = make

    def ready(self) -> bool:
        return False

    def get(self) -> R:
        return self.make()


class Pool(Crew[W]):
    """`count` worker processes of one thread each. They end with this process, however it ends."""

    def __init__(self, work: W, count: int) -> None:
        _allow_many_files()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["omni2vec.data.loader", "torch"])
        self.count = count
        self.executor = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(work,))

    def submit(self, method: Callable[..., R], *args: object) -> Later[R]:
        return _Pooled(self.executor.submit(_run, method, args), self.count)

    def close(self) -> None:
        self.executor.shutdown(wait=True, cancel_futures=True)


class _Pooled(Later[R]):
    def __init__(self, future: Future[R], count: int) -> None:
        self.future, self.count = future, count

    def ready(self) -> bool:
        return self.future.done()

    def get(self) -> R:
        try:
            return self.future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {self.count} data workers ended without a word, most often killed for want of memory; lower "
                "workers or prefetch, give /dev/shm more room (docker run --shm-size), or set workers=0 to see the "
                "fault in this process. A script that trains with workers must keep its own work under "
                '`if __name__ == "__main__":`'
            ) from error


def _allow_many_files() -> None:
    """Each tensor that a worker sends is shared memory and holds a file open for as long as it lives."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


_work: Any = None  # of this worker process, set once when it begins


def _begin(work: object) -> None:
    global _work
    import torch

    _allow_many_files()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the main process, which then ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work = work


def _run(method: Callable[..., R], args: tuple[object, ...]) -> R:
    return method(_work, *args)


def _end_with_parent() -> None:
    """A worker waits on a queue of which it holds both ends, so it would outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
