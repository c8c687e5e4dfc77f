"""What a chunk's graph saves, in pinned host memory until its backward pass: copies run beside the computation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SMALL = 1 << 14  # bytes: below this a copy to the host costs more than it frees
_VIEWS = {  # nodes of what lies in its input's memory
    f"{name}Backward{i}"
    for name in (
        *("T", "Transpose", "Permute", "View", "ReshapeAlias", "UnsafeView", "Alias", "Expand"),
        *("Unsqueeze", "Squeeze", "Select", "Slice"),
    )
    for i in (0, 1)
}
_AHEAD = 2  # tensors on their way back before the backward pass asks: one is copied while one is used


@contextlib.contextmanager
def offloading(on: bool, device: torch.device) -> Iterator[None]:
    """Tensors that the graph saves meanwhile go to the host and come back when they are needed.

    Weights, and autocast's copies of them, stay: they are saved by reference. On a CPU there is nowhere else to go,
    and nothing happens.
    """
    if not on or device.type != "cuda":
        yield
        return
    shelf = Shelf(device)
    with torch.autograd.graph.saved_tensors_hooks(shelf.pack, shelf.unpack):
        yield
    shelf.last = None


def of_weight(tensor: Tensor) -> bool:
    """Whether it is a weight, a view of one, or (a view of) the copy that autocast made of one: no chunk's own memory.

    Autocast keeps its copy of a parameter for a whole pass, so that all chunks save the same. It casts a view, such as
    one expert's weights, anew each time: that, and whatever is computed from a weight, is the chunk's.
    """
    if isinstance(tensor, nn.Parameter):
        return True
    node = tensor.grad_fn
    while node is not None and type(node).__name__ in _VIEWS:
        node = node.next_functions[0][0]
    if node is not None and type(node).__name__ == "ToCopyBackward0":
        node = node.next_functions[0][0]
    return type(node).__name__ == "AccumulateGrad" and isinstance(getattr(node, "variable", None), nn.Parameter)


@dataclass
class Saved:
    """One tensor on the host. before: the one that was saved before it, which the backward pass wants next: a chain in
    which each is freed once it has been used. back: its copy on the device, on its way; ready: when it is there."""

    host: Tensor
    before: Saved | None
    back: Tensor | None = None
    ready: torch.cuda.Event | None = None


class Shelf:
    """The saved tensors of one chunk's graph. On a CPU it only copies, so that tests reach the same code."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None  # all copies, so in order
        self.last: Saved | None = None

    def pack(self, tensor: Tensor) -> Tensor | Saved:
        """What the graph holds instead. No view of the tensor may stay: it would keep all of its memory."""
        moves = tensor.device.type == self.device.type and tensor.grad_fn is not None and tensor.nbytes >= _SMALL
        if not moves or of_weight(tensor):
            return tensor
        if self.side is None:
            host = tensor.detach().clone()
        else:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.side):
                host.copy_(tensor.detach(), non_blocking=True)
            tensor.record_stream(self.side)  # the allocator must not reuse it before the copy is done
        self.last = Saved(host, self.last)
        return self.last

    def unpack(self, saved: Tensor | Saved) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        wanted: Saved | None = saved
        for _ in range(1 + _AHEAD):
            if wanted is None:
                break
            self._bring(wanted)
            wanted = wanted.before
        back = saved.back
        assert back is not None
        if saved.ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(saved.ready)
            back.record_stream(current)  # it is the side stream's memory, used by another
        saved.back = saved.ready = None
        return back

    def _bring(self, saved: Saved) -> None:
        if saved.back is not None:
            return
        if self.side is None:
            saved.back = saved.host.clone()
            return
        with torch.cuda.stream(self.side):
            saved.back = saved.host.to(self.device, non_blocking=True)
            saved.ready = self.side.record_event()
