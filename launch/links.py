"""How fast ranks reach each other: the all-reduce of all, and every rank's way to the next one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

MB = 1 << 20
ROUNDS = 3


@dataclass(frozen=True)
class Link:
    """From rank `rank` to the next: GB/s of large messages."""

    rank: int
    host: str
    to: int
    to_host: str
    gb_s: float

    @property
    def within(self) -> bool:
        return self.host == self.to_host

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} to rank {self.to} on {self.to_host}: {self.gb_s:.2g} GB/s"


def sizes(device: torch.device) -> tuple[int, ...]:
    """Bytes of the messages: small ones cost their latency, large ones what the wire carries."""
    return (MB, 16 * MB, 256 * MB) if device.type == "cuda" else (MB // 16, MB, 8 * MB)


def all_reduce(device: torch.device) -> dict[int, float]:
    """Bytes -> GB/s that each rank's link carried, by the ring's count: 2 (n - 1) / n of the message. Collective."""
    n, found = dist.get_world_size(), {}
    for size in sizes(device):
        tensor = torch.zeros(size // 4, device=device)
        dist.all_reduce(tensor)  # the first one makes the connections
        _wait(device)
        begun = time.perf_counter()
        for _ in range(ROUNDS):
            dist.all_reduce(tensor)
        _wait(device)
        found[size] = 2 * (n - 1) / n * size * ROUNDS / (time.perf_counter() - begun) / 1e9
    return found


def to_next(device: torch.device) -> float:
    """GB/s from this rank to the next one, while every second pair of the ring is at work. Collective."""
    rank, n = dist.get_rank(), dist.get_world_size()
    tensor = torch.zeros(sizes(device)[-1] // 4, device=device)
    speed = 0.0
    # Pairs (r, r + 1) of even r, then of odd r; on an odd ring the last pair, which shares rank 0, on its own.
    rounds = [range(0, n - 1, 2), range(1, n - 1, 2), range(n - 1, n)]
    for pairs in rounds:
        dist.all_reduce(torch.zeros(1, device=device))
        _wait(device)
        if rank in pairs:
            speed = _timed(tensor, (rank + 1) % n, True)
        elif (rank - 1) % n in pairs:
            _timed(tensor, (rank - 1) % n, False)
    return speed


def _timed(tensor: torch.Tensor, other: int, sends: bool) -> float:
    word = tensor[:1].clone()
    begun = 0.0
    for turn in range(ROUNDS + 1):
        if turn == 1:  # the first one makes the connection
            begun = time.perf_counter()
        if sends:
            dist.send(tensor, other)
            dist.recv(word, other)
        else:
            dist.recv(tensor, other)
            dist.send(word, other)
        _wait(tensor.device)
    return tensor.nbytes * ROUNDS / (time.perf_counter() - begun) / 1e9


def slow(links: Sequence[Link], share: float = 0.5) -> list[Link]:
    """Those with less than `share` of the median of their kind: within a host, or between two."""
    found = []
    for kind in (True, False):
        same = [link for link in links if link.within is kind]
        if len(same) > 2:
            middle = statistics.median(link.gb_s for link in same)
            found += [link for link in same if link.gb_s < share * middle]
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
