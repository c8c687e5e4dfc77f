"""What goes wrong in a step: told apart, agreed on by all ranks, and laid at the right rows' door."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.planned import Plan
from .gather import Group

if TYPE_CHECKING:
    from .engine import Engine

_NAMED = 20  # keys written out: a log line is for reading
_NO_MEMORY = (
    "out of memory",  # CUDA's and its libraries' own
    "can't allocate memory",  # torch's allocator on the CPU
    "STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a smaller chunk would have gone through, on the device or on the host."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY):
            return True
        error = error.__cause__
    return False


def ran_out_of_memory(engine: Engine, work: Callable[[], object]) -> bool:
    """Whether `work` ran out of memory here. Where forwards and backwards hold collectives, the others wait in one
    already and cannot be told: the error is raised, and whoever started the ranks ends them."""
    try:
        work()
    except Exception as error:
        if (engine.lockstep and engine.group.size > 1) or not is_out_of_memory(error):
            raise
    else:
        return False
    gc.collect()  # behind the handler, whose traceback held the graph
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()
    return True


def agree(group: Group, device: torch.device, **flags: bool) -> dict[str, bool]:
    """Each flag raised on any rank is raised on all. Collective, in one exchange: every rank names the same flags."""
    names = sorted(flags)
    raised = torch.tensor([flags[n] for n in names], dtype=torch.int32, device=device)
    return {n: bool(v) for n, v in zip(names, group.max_(raised).tolist(), strict=True)}


@dataclass(frozen=True)
class Blame:
    """Rows behind a step that was skipped. keys: the first of them; count: all; what: "vectors" of these rows, a "loss"
    by name, or the "gradient"; where no row can be singled out, they are the whole batch's."""

    keys: tuple[str, ...]
    count: int
    what: str

    def event(self) -> dict[str, Any]:
        """For the monitor."""
        return {"not_finite": self.what, "rows": self.count, "keys": list(self.keys)}


def blame(
    vectors: Tensor,
    losses: Mapping[str, float],
    plan: Plan,
    entries: Tensor | None = None,
    group: Group | None = None,
) -> Blame:
    """The rows whose vectors are not finite, or the batch. Collective where there is a group.

    vectors: (n, D), of `entries` (n,) of the plan, this rank's; by default of all its entries. losses: by objective.
    """
    finite = torch.isfinite(vectors).all(dim=1).cpu()
    at = torch.arange(len(vectors)) if entries is None else entries.cpu()
    keys = [plan.keys[q] for q in sorted({plan.slots[e][0] for e in at[~finite].tolist()})]
    said = {"keys": keys, "losses": [n for n, v in losses.items() if not _finite(v)]}
    heard = [json.loads(m) for m in (group or Group()).exchange(json.dumps(said).encode())]
    rows = list(dict.fromkeys(k for h in heard for k in h["keys"]))
    bad = list(dict.fromkeys(n for h in heard for n in h["losses"]))
    what = "vectors" if rows else f"loss {', '.join(bad)}" if bad else "gradient"
    rows = rows or list(plan.keys)
    return Blame(tuple(rows[:_NAMED]), len(rows), what)


def _finite(value: float) -> bool:
    return value - value == 0.0


class Patience:
    """Counts steps whose gradient was not finite, in a row: at `limit`, nothing will be learned any more."""

    def __init__(self, stage: str, limit: int = 20) -> None:
        self.stage, self.limit, self.in_a_row = stage, limit, 0

    def note(self, step: int, applied: bool) -> None:
        """Raises ValueError when it is over."""
        self.in_a_row = 0 if applied else self.in_a_row + 1
        if self.in_a_row >= self.limit:
            raise ValueError(
                f"stage {self.stage!r}: the gradient was not finite for {self.limit} steps in a row, up to step "
                f"{step}; lower the rate or the scale, or look at the rows with `omni2vec show RECIPE --batch`"
            )
