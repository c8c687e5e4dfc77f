"""LoRA through peft: attach to the language model, merge in (arXiv:2106.09685).

With `quantized`, the base is rounded first: `quantize(embedder, lora.quantized)` of model/quantize.py, then `attach`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .embedder import Embedder, remade
from .quantize import Quantized, dequantize, kind_of
from .tokens import ids


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on every linear map of the language model; the rest is frozen, but for the rows of embedding
    tokens (Settings.tokens), which learn whole.

    rank and alpha: the product B A is scaled by alpha / rank. tower: adapters on the vision tower as well.
    quantized: the frozen maps of the language model in 4 or 8 bits; needs bitsandbytes. rslora: scaled by alpha /
    sqrt(rank), for high ranks (arXiv:2312.03732). dora: length and direction of each map learn apart
    (arXiv:2402.09353); it forms every adapted weight anew in each forward, which costs more than small chunks do.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tower: bool = False
    quantized: Quantized | Literal[""] = ""
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if self.quantized not in ("", "nf4", "int8"):
            raise ValueError(f"lora.quantized={self.quantized!r}; expected 'nf4' or 'int8', or '' for none")
        if self.quantized and self.dora:
            raise ValueError(
                f"lora: dora with quantized={self.quantized!r} cannot be merged exactly; drop one of the two"
            )


def attach(embedder: Embedder, lora: Lora) -> Embedder:
    """The embedder with fresh adapters (B = 0: the same function), everything else but new parts frozen."""
    from peft import LoraConfig, get_peft_model

    if embedder.adapter is not None:
        raise ValueError("this embedder has an adapter already: train on without `lora`, or merge it in first")
    model = embedder.base.model
    if (kind_of(model) or "") != lora.quantized:
        raise ValueError(
            f"lora.quantized={lora.quantized!r}, but the model is in {kind_of(model) or 'full precision'}: call "
            "quantize(embedder, lora.quantized) before attach, on the plain model"
        )
    last = re.compile(r"(^|\.)(" + "|".join(map(re.escape, lora.targets)) + r")$")
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n]
    chosen = [n for n in names if (lora.tower and "visual" in n) or ("visual" not in n and last.search(n))]
    if not chosen:
        raise ValueError(f"lora.targets={lora.targets} match no linear map of {type(model).__name__}")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=chosen,
        bias="none",
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        # peft copies the whole table at each forward to put a few rows in: 4 bytes a weight of it, for a moment.
        trainable_token_indices={_table(model): ids(embedder)} if embedder.settings.tokens else None,
    )
    adapter = get_peft_model(model, config)
    return remade(embedder, embedder.settings, adapter)


def _table(model: Any) -> str:
    """The name of the input embeddings."""
    table = model.get_input_embeddings()
    found: str = next(name for name, module in model.named_modules() if module is table)
    return found


def merged(embedder: Embedder) -> Embedder:
    """The same function without adapters: their products are added to the base weights, in place.

    A quantized base becomes plain weights with the rounded values, which full precision gives the products room in.
    """
    stock: Any = embedder.base.model
    rounded = kind_of(stock) is not None
    if embedder.adapter is None and not rounded:
        return embedder
    if rounded:
        dequantize(stock)
    if embedder.adapter is not None:
        embedder.adapter.merge_and_unload()
    # An adapter that is attached next stands on weights that are in no folder: peft would name the old ones.
    stock.name_or_path = stock.config._name_or_path = ""
    return remade(embedder, embedder.settings, None)
