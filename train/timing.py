"""A stopwatch for the sections of a step: what each cost, without waiting for the device in between.

On CUDA a section costs one event at either end, and the step one synchronisation, in `split`. A section's time is then
the device's: of loading, only what the device really waited for; on the CPU it is the wall clock's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
OTHER = "other"  # time between the sections


class Stopwatch:
    """Sections may lie in one another: the inner one's time is not the outer one's. now: the clock, in seconds.

    >>> watch = Stopwatch()
    >>> with watch("forward"):
    ...     for chunk in watch.over("data", ["a", "b"]):
    ...         pass
    >>> sorted(watch.split())
    ['data', 'forward', 'other']
    """

    def __init__(
        self, device: torch.device | str = "cpu", *, now: Callable[[], float] = time.perf_counter, on: bool = True
    ) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._device, self._now, self._on = device, now, on
        self._open = [OTHER]  # the sections that we are in
        self._marks: list[tuple[Any, str]] = [(self._mark(), OTHER)]  # when, and which section began or went on there

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The time of what is done inside goes to `name`."""
        if not self._on:
            yield
            return
        self._open.append(name)
        self._marks.append((self._mark(), name))
        try:
            yield
        finally:
            self._open.pop()
            self._marks.append((self._mark(), self._open[-1]))

    def over(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, where the time that each takes to come goes to `name`."""
        iterator = iter(items)
        while True:
            with self(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def split(self) -> dict[str, float]:
        """Seconds by section since the last split, `other` for what was in none: their sum is the time gone by."""
        end = self._mark()
        if self._cuda:
            end.synchronize()
        seconds: dict[str, float] = {}
        for (begun, name), (ended, _) in zip(self._marks, [*self._marks[1:], (end, "")], strict=True):
            seconds[name] = seconds.get(name, 0.0) + self._between(begun, ended)
        self._marks = [(end, self._open[-1])]
        return seconds

    def _mark(self) -> Any:
        if not self._cuda:
            return self._now()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _between(self, begun: Any, ended: Any) -> float:
        seconds: float = begun.elapsed_time(ended) / 1e3 if self._cuda else ended - begun
        return seconds
