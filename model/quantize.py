"""The language model's frozen linear maps in 4 or 8 bits (QLoRA, arXiv:2305.14314), through bitsandbytes.

A base so rounded is another function than the one in its folder, and an adapter trained on it belongs to it. So what is
saved says how its base was rounded, loading rounds it again in the same way, and merging gives back full weights that
hold the rounded values.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .embedder import Embedder

Quantized = Literal["nf4", "int8"]
# nf4: 4-bit normal floats in blocks of 64, their scales in 8 bits: 4.13 bits a weight. int8: a scale a row
# (arXiv:2208.07339).


def quantize(
    embedder: Embedder,
    kind: Quantized,
    *,
    device: torch.device | str | None = None,
    compute: torch.dtype | None = None,
) -> Embedder:
    """The embedder with every linear map of its language model in `kind`, frozen, in place; attach adapters next.

    device: where it is put, map by map: load on the CPU and give the GPU, and the whole weights never stand there.
    compute: the dtype that they are multiplied in (nf4), by default that of the first input: give bfloat16 for
    autocast in it. Raises ImportError without bitsandbytes, ValueError for an embedder that has an adapter.
    """
    if embedder.adapter is not None:
        raise ValueError("this embedder has an adapter: quantize its base first, or merge the adapter in")
    quantize_model(embedder.base.model, kind, torch.device(device or embedder.device), compute)
    return embedder.to(device or embedder.device)


def quantize_model(model: Any, kind: Quantized, device: torch.device, compute: torch.dtype | None = None) -> None:
    """As `quantize`, of a stock model, in place; the rest of it stays where it is."""
    if kind not in get_args(Quantized):
        raise ValueError(f"quantized={kind!r}; expected 'nf4' or 'int8', or '' for none")
    bnb = _bitsandbytes(kind)
    if (found := kind_of(model)) is not None:
        raise ValueError(f"this model is in {found} already")
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head and "visual" not in name.split("."):
            model.set_submodule(name, _packed(bnb, module, kind, device, compute))
    # peft reads these to choose its layers.
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "nf4", kind == "int8"


def kind_of(model: nn.Module) -> Quantized | None:
    """How a stock model's maps were rounded; None for a plain one. Needs no bitsandbytes."""
    names = {type(m).__name__ for m in model.modules() if type(m).__module__.startswith("bitsandbytes.")}
    return "nf4" if "Linear4bit" in names else "int8" if "Linear8bitLt" in names else None


def dequantize(model: Any) -> None:
    """Plain maps with the rounded values, in place; a LoRA on one is added in full precision and goes with it."""
    from peft.tuners.lora import LoraLayer

    wrapped = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, module in list(model.named_modules()):
        if type(module).__module__.startswith("bitsandbytes.") and isinstance(module, nn.Linear):
            plain, owner = _plain(module), name.removesuffix(".base_layer")
            if owner in wrapped:
                for adapter in wrapped[owner].active_adapters:
                    plain.weight.data += wrapped[owner].get_delta_weight(adapter).to(plain.weight)
            model.set_submodule(owner if owner in wrapped else name, plain)
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False


def _bitsandbytes(kind: str) -> Any:
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise ImportError(
            f"weights in {kind} need bitsandbytes, which is not installed: pip install bitsandbytes"
        ) from error


def _packed(
    bnb: Any, linear: nn.Linear, kind: Quantized, device: torch.device, compute: torch.dtype | None
) -> nn.Module:
    shape = (linear.in_features, linear.out_features, linear.bias is not None)
    weight = linear.weight.data
    if kind == "nf4":
        made = bnb.nn.Linear4bit(*shape, compute_dtype=compute, quant_type="nf4", device="meta")
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
        # On some processors evaluation would repack the weights in place, round their scales anew and break training.
        made.support_avx512bf16_for_cpu = False
    else:
        made = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    made.bias = None if linear.bias is None else nn.Parameter(linear.bias.data, requires_grad=False)
    made.original_dtype = weight.dtype
    moved: nn.Module = made.to(device)  # bitsandbytes rounds weights as they are moved
    return moved.train(linear.training)


def _plain(module: Any) -> nn.Linear:
    from peft.utils.integrations import dequantize_bnb_weight

    weight: Tensor = dequantize_bnb_weight(module.weight, state=getattr(module, "state", None))
    out = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
    out.weight = nn.Parameter(weight.to(module.original_dtype))
    if module.bias is not None:
        out.bias = nn.Parameter(module.bias.data)
    return out.train(module.training)
