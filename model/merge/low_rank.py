"""Adapters merged into an adapter: their products summed exactly, then cut to a rank by an SVD that forms no ΔW."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.types import DataError
from ..checkpoint import ADAPTER, RECORD, WEIGHTS, snapshot
from . import files
from .adapters import ADAPTED, Adapted, Adapter, cut, is_adapter, one_base, open_adapter, rounded, summed
from .alike import Model, aligned, same_files
from .types import Block, Linear, Rule, combine
from .weights import STOCK, Key


def fill_adapter(
    out: Path,
    models: Sequence[str | Path],
    rule: Rule,
    base: str | Path | None,
    dtype: torch.dtype | None,
    rank: int,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """The adapter of rank `rank` that is nearest to the merged ΔW, map by map, in the Frobenius norm.

    The record holds the share of ΔW's norm that is lost, `lost_norm`, and of the map that lost most. In memory: the
    factors of all adapters, and one map's in float64. Raises DataError for models that are no adapters on one base, and
    for a rule that is no sum of products.
    """
    if not isinstance(rule, Linear):
        raise DataError(
            f"{type(rule).__name__} of adapters is no sum of their products, so it has no low rank; write dense "
            "weights (rank 0), or take Average, Weighted, TaskArithmetic or Ema"
        )
    opened = _opened(models, rule, names, base)
    adapters = [m.tensors.adapter for m in opened if isinstance(m.tensors, Adapted)]
    coefficients = rule.coefficients(len(opened))
    written, lost = _products(adapters, coefficients, rank, dtype)
    written |= _saved(opened, adapters, coefficients, dtype)
    _save(out / ADAPTED, written)
    if own := _own(opened, rule):
        _save(out / WEIGHTS, own)
    files.copy(Model(opened[0].tensors, opened[0].folder, opened[0].folder), out)
    config = _config(adapters, rank)
    (out / ADAPTER).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return files.record(out, opened, rule, None, dtype, same_files(opened), {"rank": rank, **lost})


def _opened(models: Sequence[str | Path], rule: Rule, names: Sequence[str], base: str | Path | None) -> list[Model]:
    if len(models) < 2:
        raise DataError(f"{len(models)} model{'s' * (len(models) != 1)} to merge; give two or more")
    rule.check(len(models))
    opened = []
    for at, label in zip(models, names or [str(m) for m in models], strict=True):
        folder = snapshot(at)
        if not is_adapter(folder):
            raise DataError(f"{at} is no adapter, so that no adapter can come of it; write dense weights (rank 0)")
        adapter = open_adapter(folder)
        if adapter.embeddings:
            raise DataError(f"{at} adapts {adapter.embeddings[0]}, an embedding; write dense weights (rank 0)")
        opened.append(Model(Adapted.of(adapter, label), folder, adapter.base.folder))
    adapters = [m.tensors.adapter for m in opened if isinstance(m.tensors, Adapted)]
    one_base(adapters)
    if len({rounded(m.folder) for m in opened}) > 1:
        raise DataError(f"{opened[0].folder} and others stand on a base that was rounded in different ways ({RECORD})")
    if base is not None and snapshot(base) != adapters[0].base.folder:
        raise DataError(f"the adapters stand on {adapters[0].base.folder}, and an adapter cannot stand on {base}")
    same_files(opened)
    return opened


def _products(
    adapters: Sequence[Adapter], coefficients: Sequence[float], rank: int, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    written, lost, whole, worst = dict[str, Tensor](), 0.0, 0.0, ("", 0.0)
    turned = bool(adapters[0].config.get("fan_in_fan_out"))
    for target in sorted({t for a in adapters for t in a.products}):
        product, gone, all_ = cut(summed([a.products.get(target) for a in adapters], coefficients), rank)
        lost, whole = lost + gone, whole + all_
        share = math.sqrt(gone / all_) if all_ > 0 else 0.0
        worst = max(worst, (target, share), key=lambda w: w[1])
        owner = next(a for a in adapters if target in a.products)
        pair = (product.left.T, product.right.T) if turned else (product.right, product.left)
        for end, factor in zip(("lora_A.weight", "lora_B.weight"), pair, strict=True):
            kind = dtype or owner.dtype
            written[f"base_model.model.{owner.modules[target]}.{end}"] = factor.to(kind).contiguous()
    share = math.sqrt(lost / whole) if whole > 0 else 0.0
    return written, {"lost_norm": share, "lost_most": {"tensor": worst[0], "lost_norm": worst[1]}}


def _saved(
    opened: Sequence[Model], adapters: Sequence[Adapter], coefficients: Sequence[float], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Tensors that stand in place of the base's: merged like any, the base's own where an adapter has none."""
    written = {}
    for target in sorted({t for a in adapters for t in a.saved}):
        owner = next(a for a in adapters if target in a.saved)
        entry, key = owner.saved[target], Key(STOCK, target)
        values = tuple(m.tensors.read(key, 0, entry.count) for m in opened)
        block = Block(target, 0, values, adapters[0].base.read(key, 0, entry.count))
        merged = combine(block, coefficients).view(entry.shape)
        written[f"base_model.model.{owner.modules[target]}"] = merged.to(dtype or entry.dtype).contiguous()
    return written


def _own(opened: Sequence[Model], rule: Rule) -> dict[str, Tensor]:
    """Our own parts (scale, head), which the base has none of: their mean stands for it."""
    own = [k for k in opened[0].tensors.entries if k.group == WEIGHTS]
    tensors = [opened[0].tensors, *(aligned(opened[0], m) for m in opened[1:])]
    written = {}
    for key in own:
        entry = opened[0].tensors.entries[key]
        values = tuple(t.read(key, 0, entry.count) for t in tensors)
        mean = torch.stack([v.double() for v in values]).mean(0).to(values[0].dtype)
        written[key.name] = rule.merge(Block(str(key), 0, values, mean), None).view(entry.shape).to(entry.dtype)
    return written


def _config(adapters: Sequence[Adapter], rank: int) -> dict[str, Any]:
    """The first adapter's, of the new rank, scaled by 1: the scaling is in the factors."""
    modules = sorted({a.modules[t] for a in adapters for t in a.products})
    saved = sorted({m for a in adapters for m in a.config.get("modules_to_save") or ()})
    plain: Mapping[str, Any] = {"r": rank, "lora_alpha": rank, "use_rslora": False}
    return {
        **adapters[0].config,
        **plain,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": modules,
        "modules_to_save": saved or None,
    }


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, file, metadata={"format": "pt"})
