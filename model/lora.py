"""LoRA through peft: attach to the language model, merge in (arXiv:2106.09685)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from .embedder import Embedder, remade


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on every linear map of the language model; the rest is frozen.

    rank and alpha: the product B A is scaled by alpha / rank. tower: adapters on the vision tower as well.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tower: bool = False


def attach(embedder: Embedder, lora: Lora) -> Embedder:
    """The embedder with fresh adapters (B = 0: the same function), everything else but new parts frozen."""
    from peft import LoraConfig, get_peft_model

    if embedder.adapter is not None:
        raise ValueError("this embedder has an adapter already: train on without `lora`, or merge it in first")
    model = embedder.base.model
    last = re.compile(r"(^|\.)(" + "|".join(map(re.escape, lora.targets)) + r")$")
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n]
    chosen = [n for n in names if (lora.tower and "visual" in n) or ("visual" not in n and last.search(n))]
    if not chosen:
        raise ValueError(f"lora.targets={lora.targets} match no linear map of {type(model).__name__}")
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=chosen, bias="none"
    )
    adapter = get_peft_model(model, config)
    return remade(embedder, embedder.settings, adapter)


def merged(embedder: Embedder) -> Embedder:
    """The same function without adapters: their products are added to the base weights, in place."""
    if embedder.adapter is None:
        return embedder
    embedder.adapter.merge_and_unload()
    # An adapter that is attached next stands on weights that are in no folder: peft would name the old ones.
    stock: Any = embedder.base.model
    stock.name_or_path = stock.config._name_or_path = ""
    return remade(embedder, embedder.settings, None)
