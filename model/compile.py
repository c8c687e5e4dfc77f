"""torch.compile of what stands between the attentions of a model: the norms and feed-forward maps of every block.

Not of whole blocks: attention reads its segments' lengths on the host, which would be compiled anew for every row, or
break the block's graph; and where a graph breaks inside activation checkpointing, torch runs the whole block
uncompiled, without a word. The parts between hold no such break, are compiled once for all blocks and any number of
tokens, and run compiled in a checkpoint's recomputation as well.

It helps where kernels are small and many: on a GPU, with rows of a few thousand tokens or less, or LoRA's thin
products. It costs a minute at the start, and changes results by rounding. On a CPU it gains nothing to speak of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn

from .embedder import Embedder
from .quantize import kind_of

Compiler = Literal["inductor", "aot_eager", "eager"]  # the latter two trace without making kernels: for tests


def compiled(embedder: Embedder, compiler: Compiler = "inductor") -> Embedder:
    """The same embedder, its blocks' norms and feed-forward maps compiled at their first call, in place.

    Call it after adapters are attached and before an engine wraps the model. Weights, names and what is saved stay as
    they are. Raises ValueError for a model with quantized maps, or whose blocks are not found.
    """
    model: Any = embedder.base.model
    if rounded := kind_of(model):
        raise ValueError(f"compile: maps in {rounded} have kernels of their own; drop compile or lora.quantized")
    parts = list(_parts(model))
    if not parts:
        raise ValueError(f"compile: {type(model).__name__} has no blocks that activation checkpointing knows")
    for part in parts:
        part.compile(dynamic=True, backend=compiler)
    return embedder


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Children of every block but its attention. A block is what activation checkpointing runs again as one."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            yield from (m for name, m in block.named_children() if not _attends(name))


def _attends(name: str) -> bool:
    """post_attention_layernorm does not."""
    return ("attn" in name or "attention" in name) and "norm" not in name
