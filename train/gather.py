"""The ranks of a run: their vectors gathered, their gradients summed and sent to where they are needed.

No collective is differentiated: the cached step knows the gradient of every gathered vector, so what autograd would
do behind a gather is one exchange of gradients, and nothing depends on how a library scales it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..data.ranks import Ranks

# Renamed in torch 2.14, where the older name warns.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


_PATIENCE = timedelta(hours=24)  # of one rank for another: that one hangs is the watchdog's business


@dataclass
class Group:
    """Rank `rank` of `size`. All ranks call the same methods in the same order, with tensors on one kind of device.

    calls, sent: collectives begun here and the bytes of this rank's operands, by kind, for tests and monitoring.
    """

    rank: int = 0
    size: int = 1
    host: Any = None  # a gloo group for bytes on the host, apart from the device's
    side: Any = None  # another, for the loader's thread: calls of two threads have no order between them
    calls: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def current() -> Group:
        """The group of torch.distributed, or one process. Collective where there is a group."""
        if not (dist.is_available() and dist.is_initialized()):
            return Group()
        host, side = (dist.new_group(backend="gloo", timeout=_PATIENCE) for _ in range(2))
        return Group(dist.get_rank(), dist.get_world_size(), host, side)

    @property
    def ranks(self) -> Ranks:
        """For the loader: who we are, and an exchange on a channel that nobody else uses."""
        return Ranks(self.rank, self.size, lambda message: self._exchange(message, self.side))

    def _note(self, kind: str, tensor: Tensor) -> None:
        self.calls[kind] += 1
        self.sent[kind] += tensor.nbytes

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            self._note("all_reduce", tensor)
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """The element-wise maximum over ranks, in place."""
        if self.size > 1:
            self._note("all_reduce", tensor)
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """(n, ...) of every rank, equal shapes -> (size, n, ...), in rank order."""
        if self.size == 1:
            return tensor[None]
        self._note("all_gather", tensor)
        out = tensor.new_empty((self.size * len(tensor), *tensor.shape[1:]))
        _all_gather(out, tensor.contiguous())
        return out.view(self.size, *tensor.shape)

    def reduce_scatter(self, tensor: Tensor, into: Tensor) -> Any:
        """Begin the sum over ranks of `tensor` (size * n, ...), of which the rows [rank * n, (rank + 1) * n) go into
        `into` (n, ...), both contiguous. Returns a handle whose wait() ends it: until then neither may be touched, then
        what is left in `tensor` is undefined. None where there is nothing to wait for."""
        if self.size == 1:
            into.copy_(tensor)
            return None
        self._note("reduce_scatter", tensor)
        begin: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # renamed in 2.14 too
        return begin(into, tensor, async_op=True)

    def deal(self, tensor: Tensor, counts: Sequence[int], come: Sequence[int]) -> Tensor:
        """Rows of `tensor` (sum(counts), ...): the first counts[0] go to rank 0, and so on; gives those that came, from
        rank 0 first, come[r] from rank r."""
        if self.size == 1:
            return tensor
        self._note("all_to_all", tensor)
        out = tensor.new_empty((sum(come), *tensor.shape[1:]))
        dist.all_to_all_single(out, tensor.contiguous(), list(come), list(counts))
        return out

    def send(self, tensor: Tensor, source: int) -> Tensor:
        """Rank `source`'s tensor to all, in place."""
        if self.size > 1:
            self._note("broadcast", tensor)
            dist.broadcast(tensor, source)
        return tensor

    def exchange(self, message: bytes) -> list[bytes]:
        """Every rank's bytes, in rank order. On the host's own channel; no pickle."""
        return self._exchange(message, self.host)

    def _exchange(self, message: bytes, channel: Any) -> list[bytes]:
        if self.size == 1:
            return [message]
        lengths = torch.empty(self.size, dtype=torch.int64)
        _all_gather(lengths, torch.tensor([len(message)]), group=channel)
        longest = int(lengths.max())
        own = torch.zeros(longest, dtype=torch.uint8)
        own[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else own[:0]
        out = torch.empty(self.size * longest, dtype=torch.uint8)
        _all_gather(out, own, group=channel)
        rows = out.view(self.size, longest)
        return [rows[r, : int(n)].numpy().tobytes() for r, n in enumerate(lengths)]

    def barrier(self) -> None:
        """Every rank waits for every other, on the host's channel."""
        if self.size > 1:
            dist.barrier(group=self.host)

    def share(self, count: int) -> tuple[int, int]:
        """This rank's even share of `count` rows: (first, behind the last)."""
        return bounds(count, self.size)[self.rank]


def bounds(count: int, size: int) -> list[tuple[int, int]]:
    """`count` rows in `size` consecutive shares, as even as they can be."""
    return [(count * r // size, count * (r + 1) // size) for r in range(size)]


def gather_vectors(group: Group, entries: Sequence[Tensor], own: Tensor) -> Tensor:
    """The vectors of all entries (E, D) on every rank, in one all-gather, in the dtype of `own`.

    entries: of each rank, the entries whose vectors it holds, (n_r,) int64 in the order of its rows, as every rank
    knows them from the plan; together each of 0..E-1 once. own (n_rank, D): (0, D) on a rank that holds none. Ranks
    with fewer vectors than the most send rows that nobody reads.
    """
    if len(own) != len(entries[group.rank]):
        raise ValueError(
            f"rank {group.rank} of {group.size} has {len(own)} vectors for {len(entries[group.rank])} entries of the "
            "plan; pass the vectors of its own entries, in their order"
        )
    padded = own
    if group.size > 1:
        most = max(len(e) for e in entries)
        padded = own.new_zeros((most, *own.shape[1:]))
        padded[: len(own)] = own
    rows = group.gather(padded).flatten(0, 1)
    held = torch.tensor([len(e) for e in entries])
    skipped = torch.arange(group.size) * len(padded) - held.cumsum(0) + held  # rows of padding before each rank's
    at = torch.empty(int(held.sum()), dtype=torch.int64)
    at[torch.cat(list(entries)).cpu()] = torch.arange(len(at)) + skipped.repeat_interleave(held)
    return rows[at.to(rows.device)]


def bring(group: Group, share: Tensor, rows: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients from the ranks that computed them to those that need them, in one all-to-all.

    rows (M,) int64: row i of a subset is entry rows[i] of the batch. owner (E,) int64: the rank that needs entry e.
    Both are equal on all ranks, so that nobody need say how much it sends. share (b - a, D): what this rank computed,
    of the subset's rows [a, b) = group.share(M). Returns (entries, gradient): the entries of the subset that this rank
    owns (n,), in the order of the subset, on the device of `share`, and their rows (n, D).
    """
    first, last = group.share(len(rows))
    if len(share) != last - first:
        raise ValueError(
            f"rank {group.rank} of {group.size} brings {len(share)} rows; its share of {len(rows)} is {last - first}"
        )
    to = owner.cpu()[rows.cpu()]
    mine = (to == group.rank).nonzero().squeeze(1)
    entries = rows[mine.to(rows.device)].to(share.device)
    if group.size == 1:
        return entries, share
    counts = torch.bincount(to[first:last], minlength=group.size).tolist()
    come = [int(((mine >= a) & (mine < b)).sum()) for a, b in bounds(len(rows), group.size)]
    by_owner = to[first:last].argsort(stable=True).to(share.device)
    return entries, group.deal(share[by_owner], counts, come)
