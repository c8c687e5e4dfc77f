"""What an inner layer sees: the language model's residual stream between two of its blocks, for objectives on it.

Taken as the INPUT of a block, while the forward runs: activation checkpointing runs a block again in the backward pass,
but what it was given is the same tensor of the same graph, whether the hook stands inside the checkpoint or outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..data.types import DataError

_OTHERS = ("visual", "vision", "audio", "tower", "image", "merger")  # words in the names of what is no language model


def blocks_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The blocks of the language model, first to last; none where they cannot be told from the rest.

    The outermost list of modules that no other list and no media tower holds, and that is as long as the configuration
    says, where there is one (a model that runs one block many times, as ALBERT does, has no such list).
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in lists)
        other = any(word in part.lower() for part in name.split(".") for word in _OTHERS)
        if isinstance(module, nn.ModuleList) and not inside and not other:
            lists[name] = module
    config: Any = getattr(model, "config", None)
    if config is not None:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        count = int(getattr(text, "num_hidden_layers", 0) or 0)
        lists = {name: found for name, found in lists.items() if len(found) == count}
    longest = max(lists.values(), key=len, default=None)
    return () if longest is None else tuple(longest)


def check(layers: Sequence[int], blocks: int, model: nn.Module) -> None:
    """Raises DataError for a layer that is none between two blocks."""
    if layers and blocks < 2:
        found = "no list of blocks is found in it" if not blocks else "it has one block"
        raise DataError(
            f"layer {layers[0]}: {type(model).__name__} has no inner layers: {found}; drop the objective on an inner "
            "layer, or train a language model"
        )
    for layer in layers:
        if not 0 < layer < blocks:
            raise DataError(
                f"layer {layer}: expected 1 to {blocks - 1}, what the first so many of the {blocks} blocks of "
                f"{type(model).__name__} give; {blocks} is the last layer, which the embedder's own vectors come from"
            )


@contextmanager
def captured(blocks: Sequence[nn.Module], layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """layer -> what its block is given while this is open, as it stands in the graph. Nothing is kept behind it but
    what the caller keeps: a recomputation in the backward pass finds no hook."""
    found: dict[int, Tensor] = {}
    hooks = [
        # In front of an engine's own: it wraps a block's inputs for its bookkeeping of that block.
        blocks[layer].register_forward_pre_hook(_taking(found, layer), prepend=True, with_kwargs=True)
        for layer in dict.fromkeys(layers)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _taking(found: dict[int, Tensor], layer: int) -> Any:
    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(given, Tensor):
            raise DataError(f"layer {layer}: {type(module).__name__} is given no hidden states that can be taken")
        found[layer] = given

    return take


def rows(states: Tensor, lengths: Sequence[int]) -> Tensor:
    """(T, width) of what a block was given for a packed row: itself, a batch of one row, or a row a segment, padded on
    the right."""
    total = sum(lengths)
    if states.ndim == 2 and len(states) == total:
        return states
    if states.ndim == 3 and states.shape[:2] == (1, total):
        return states[0]
    if states.ndim == 3 and states.shape[:2] == (len(lengths), max(lengths, default=0)):
        real = torch.arange(states.shape[1]) < torch.tensor(lengths)[:, None]
        return states[real.to(states.device)]
    raise DataError(f"an inner layer of shape {tuple(states.shape)}; expected the states of {total} tokens")
