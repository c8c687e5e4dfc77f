"""The stopwatch: every second goes to one section, the inner one, and to one step."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from omni2vec.train.timing import Stopwatch


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_each_second_goes_to_its_section_and_the_rest_to_other() -> None:
    clock = Clock()
    watch = Stopwatch(now=clock)
    clock.wait(1)
    with watch("forward"):
        clock.wait(2)
    with watch("loss"):
        clock.wait(4)
    clock.wait(8)
    with watch("forward"):
        clock.wait(16)
    assert watch.split() == {"other": 9.0, "forward": 18.0, "loss": 4.0}


def test_the_time_of_an_inner_section_is_not_that_of_the_outer_one() -> None:
    clock = Clock()
    watch = Stopwatch(now=clock)
    with watch("forward"):
        clock.wait(1)
        with watch("data"):
            clock.wait(10)
        clock.wait(2)
    assert watch.split() == {"other": 0.0, "forward": 3.0, "data": 10.0}


def test_waiting_for_items_is_told_from_working_on_them() -> None:
    clock = Clock()
    watch = Stopwatch(now=clock)

    def items() -> Iterator[int]:
        for i in range(3):
            clock.wait(5)
            yield i
        clock.wait(7)  # to learn that there are no more

    with watch("forward"):
        for _ in watch.over("data", items()):
            clock.wait(1)
    assert watch.split() == {"other": 0.0, "forward": 3.0, "data": 22.0}


def test_a_split_begins_anew_even_within_a_section() -> None:
    clock = Clock()
    watch = Stopwatch(now=clock)
    with watch("update"):
        clock.wait(1)
        assert watch.split() == {"other": 0.0, "update": 1.0}
        clock.wait(2)
    clock.wait(3)
    assert watch.split() == {"update": 2.0, "other": 3.0}


def test_a_section_that_raises_is_left() -> None:
    clock = Clock()
    watch = Stopwatch(now=clock)
    with pytest.raises(ValueError, match="bad"), watch("loss"):
        clock.wait(1)
        raise ValueError("bad")
    clock.wait(2)
    assert watch.split() == {"other": 2.0, "loss": 1.0}


def test_a_watch_that_is_off_tells_nothing() -> None:
    watch = Stopwatch(on=False)
    with watch("loss"):
        pass
    assert list(watch.over("data", [1, 2])) == [1, 2]
    assert set(watch.split()) == {"other"}


def test_a_section_costs_microseconds() -> None:
    watch = Stopwatch()
    began = time.perf_counter()
    for _ in range(1000):
        with watch("forward"):
            pass
    assert time.perf_counter() - began < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device_a_section_is_as_long_as_its_kernels_and_the_sum_as_the_wall_clock() -> None:
    x = torch.randn(4096, 4096, device="cuda")
    x @ x
    torch.cuda.synchronize()
    watch = Stopwatch("cuda")
    began = time.perf_counter()
    with watch("forward"):
        for _ in range(50):
            x = x @ x * 1e-3
    asked = time.perf_counter() - began
    with watch("data"):
        time.sleep(0.001)
    times = watch.split()
    wall = time.perf_counter() - began
    assert times["forward"] > 5 * asked  # the launches alone are quicker by far
    assert times["data"] < 0.001 + times["forward"]  # the device was still busy: little of the wait is seen
    assert sum(times.values()) == pytest.approx(wall, rel=0.1)
