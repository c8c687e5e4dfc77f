"""What an Item has alone, computed inside the model's forward: next-token terms, and terms of embedding tokens' states.

A term runs in every chunk and on every rank, on nothing where nothing is its own: engines that gather weights wait for
all ranks. It gives a sum and a count, since only who knows the whole batch may divide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch import Tensor

from ..data.types import DataError
from .types import Inputs

# name -> (groups whose answers it takes, (logits, labels) -> (sum, count))
LocalTerms = Mapping[str, tuple[frozenset[int], Callable[[Tensor, Tensor], tuple[Tensor, int]]]]
# name -> (groups whose Items it takes, states (n, K, width) of their embedding tokens -> (sum, count))
StateTerms = Mapping[str, tuple[frozenset[int], Callable[[Tensor], tuple[Tensor, int]]]]
Sums = dict[str, tuple[Tensor, int]]


def of_answers(hidden: Tensor, inputs: Inputs, terms: LocalTerms, logits: Callable[[Tensor], Tensor]) -> Sums:
    """hidden (T, width), through the head at labelled positions only."""
    if not terms:
        return {}
    owner = torch.tensor(inputs.groups).repeat_interleave(torch.tensor(inputs.lengths)).to(hidden.device)
    out = {}
    for name, (groups, term) in terms.items():
        mine = (inputs.labels >= 0) & torch.isin(owner, torch.tensor(sorted(groups), device=hidden.device))
        rows = mine.nonzero().squeeze(1)  # none in this chunk: the head still runs, on zero rows, on every rank
        out[name] = term(logits(hidden[rows]), inputs.labels[rows])
    return out


def of_states(hidden: Tensor, inputs: Inputs, terms: StateTerms, count: int) -> Sums:
    """hidden (T, width), at the last `count` tokens of each prompt, in float32 or more. Of Items that are really there:
    not of dummies, nor of what could not be decoded. Raises DataError where there are no embedding tokens."""
    ends = [start + prefix for start, prefix in zip(accumulate((0, *inputs.lengths)), inputs.prefix, strict=False)]
    real = [i for i in range(len(ends) - inputs.dummies) if i not in inputs.failed]
    out = {}
    for name, (groups, term) in terms.items():
        if not count:
            raise DataError(
                f"{name}: goes by the states of embedding tokens, and this embedder has none; give the stage "
                "tokens=16, or call omni2vec.model.tokens.with_tokens(embedder, 16)"
            )
        rows = [list(range(ends[i] - count, ends[i])) for i in real if inputs.groups[i] in groups]
        states = hidden[torch.tensor(rows, dtype=torch.int64).view(-1, count).to(hidden.device)]
        out[name] = term(states.float() if states.dtype in (torch.float16, torch.bfloat16) else states)
    return out
