"""Ranks in one process, for tests of checkpoints: threads that form a group, an engine that holds a rank's share."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from omni2vec.train.fragments import Piece
from omni2vec.train.gather import Group
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")
_SEEDED = threading.Lock()


class Threads(Group):
    """A rank that is a thread. Only what bytes need is there."""

    def __init__(self, rank, size, barrier, slots):
        super().__init__(rank, size)
        self._barrier, self._slots = barrier, slots

    def exchange(self, message):
        self._slots[self.rank] = message
        self._barrier.wait(20)
        heard = list(self._slots)
        self._barrier.wait(20)
        return heard


def on_ranks(size, work):
    """[work(group)] of each rank, run in threads; an exception stands in its rank's place."""
    barrier, slots = threading.Barrier(size), [b""] * size

    def one(rank):
        try:
            return work(Threads(rank, size, barrier, slots))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


class Net(nn.Module):
    """Parameters of odd shapes, one of them shorter than the ranks are many."""

    def __init__(self, width=7, dtype=torch.float32):
        super().__init__()
        self.first = nn.Linear(5, width, dtype=dtype)
        self.second = nn.Linear(width, 3, bias=False, dtype=dtype)
        self.scale = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, x):
        return self.second(self.first(x).tanh()) * self.scale


class Share:
    """Rank `rank`'s even share of each parameter of `net` and of its moments, as an engine that shards would give."""

    device = torch.device("cpu")

    def __init__(self, net, rank=0, size=1):
        self.net, self.rank, self.size = net, rank, size
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)

    def train(self, steps, first=0):
        for step in range(first, first + steps):
            draw = torch.Generator().manual_seed(step)
            x = torch.randn(8, 5, generator=draw).to(self.net.scale.dtype)
            self.net(x).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def pieces(self):
        for name, p in self.net.named_parameters():
            start, stop = (p.numel() * r // self.size for r in (self.rank, self.rank + 1))
            shape = tuple(p.shape)
            yield Piece(name, "weight", start, p.detach().view(-1)[start:stop], shape)
            for kind in MOMENTS if p in self.optimizer.state else ():
                yield Piece(name, kind, start, self.optimizer.state[p][kind].view(-1)[start:stop], shape)
            if p in self.optimizer.state and self.rank == 0:
                yield Piece(name, "step", 0, self.optimizer.state[p]["step"].view(1), shape)

    def restore(self, read):
        """Each rank reads its own share only; `whole` puts the shares together."""
        self.got = {}
        for name, p in self.net.named_parameters():
            start, stop = (p.numel() * r // self.size for r in (self.rank, self.rank + 1))
            for kind in ("weight", *MOMENTS):
                self.got[name, kind] = read(name, kind, start, stop)
            self.got[name, "step"] = read(name, "step", 0, 1)


def whole(shares):
    """Puts what every rank restored together in one net and its optimiser."""
    net = Net(shares[0].net.first.out_features, shares[0].net.scale.dtype)
    made = Share(net)
    for name, p in net.named_parameters():
        full = {kind: torch.cat([s.got[name, kind] for s in shares]).view(p.shape) for kind in ("weight", *MOMENTS)}
        p.data.copy_(full["weight"])
        step = shares[0].got[name, "step"].view(())
        made.optimizer.state[p] = {"step": step.clone(), **{k: full[k].clone() for k in MOMENTS}}
    return made


def net(seed=0, **settings):
    with _SEEDED:  # torch has one random state for all threads
        torch.manual_seed(seed)
        return Net(**settings)
