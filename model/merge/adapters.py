"""LoRA adapters (arXiv:2106.09685) as what they add to a base: ΔW = s B A, never A and B apart.

The mean of products is no product of means: (B1 + B2)(A1 + A2) has terms that neither adapter has. So an adapter is
read as base + ΔW, row by row, or products are merged exactly by stacking their factors, and cut to a rank by an SVD.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.types import DataError
from ..checkpoint import ADAPTER, RECORD, WEIGHTS, digest_of_folder, snapshot
from .weights import STOCK, Entry, Folder, Key, header, matched, read, widened

_TILE = 64  # rows of ΔW that are multiplied at a time, from a multiple of it: the same bits for any block
ADAPTED = "adapter_model.safetensors"


@dataclass(frozen=True)
class Product:
    """ΔW = left @ right, (out, r) @ (r, in), float32, the scaling inside left."""

    left: Tensor
    right: Tensor

    def rows(self, first: int, stop: int) -> Tensor:
        """Rows [first, stop) of ΔW, in tiles; first and stop are multiples of a tile, or the end."""
        return torch.cat([self.left[i : min(i + _TILE, stop)] @ self.right for i in range(first, stop, _TILE)])


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder. products: by the base's tensor that they are added to; saved: tensors that stand in place of
    the base's; modules: of either, the name in the adapter's file, of a product without its `.lora_A.weight`."""

    folder: Path
    base: Folder
    config: Mapping[str, Any]
    products: Mapping[str, Product]
    saved: Mapping[str, Entry]
    modules: Mapping[str, str]
    embeddings: tuple[str, ...] = ()  # targets that are embeddings
    dtype: torch.dtype = torch.float32  # of the factors


@dataclass(frozen=True)
class Adapted:
    """A base with an adapter's ΔW in it, as Tensors."""

    label: str
    adapter: Adapter
    entries: Mapping[Key, Entry] = field(repr=False)

    @staticmethod
    def of(adapter: Adapter, label: str) -> Adapted:
        own = {k: e for k, e in adapter.base.entries.items() if k.group == STOCK}
        own |= {Key(STOCK, n): e for n, e in adapter.saved.items()}
        if (adapter.folder / WEIGHTS).is_file():
            own |= {Key(WEIGHTS, n): e for n, e in header(adapter.folder / WEIGHTS).items()}
        return Adapted(label, adapter, own)

    def read(self, key: Key, start: int, stop: int) -> Tensor:
        entry = self.entries[key]
        values = widened(read(entry, start, stop))
        product = self.adapter.products.get(key.name) if key.group == STOCK else None
        if product is None or stop == start:
            return values
        width = entry.shape[1]
        first = start // width // _TILE * _TILE
        rows = (stop + width - 1) // width
        last = min(entry.shape[0], (rows + _TILE - 1) // _TILE * _TILE)
        added = product.rows(first, last).view(-1)[start - first * width : stop - first * width]
        return values + added.to(values.dtype)


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file()


def open_adapter(folder: Path) -> Adapter:
    """The adapter of a folder over its base. Raises DataError for what is no sum of base and products (DoRA, other
    kinds), and where a product fits no tensor of the base."""
    config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    _plain(folder, config)
    if not (folder / ADAPTED).is_file():
        raise DataError(f"{folder}: {ADAPTER} stands without {ADAPTED}; copy the folder again")
    at = snapshot(config["base_model_name_or_path"])
    base = Folder.of(at, f"{at}, the base of {folder}")
    entries = {n.removeprefix("base_model.model."): e for n, e in header(folder / ADAPTED).items()}
    names = [k.name for k in base.entries if k.group == STOCK]
    products, modules, saved = dict[str, Product](), dict[str, str](), dict[str, Entry]()
    for name, entry in entries.items():
        module, mark, rest = name.partition(".lora_")
        if mark and rest.startswith(("A", "embedding_A")):
            target = _target(f"{module}.weight", names, folder, at)
            products[target] = _product(entries, module, rest.startswith("e"), config, folder)
            modules[target] = module
            _fits(target, base.entries[Key(STOCK, target)], products[target], folder)
        elif mark and not rest.startswith(("B", "embedding_B")):
            raise DataError(f"{folder}: {name} is no part of a product B A; merge the adapter into its base first")
        elif not mark:
            target = _target(name.replace(".modules_to_save", ""), names, folder, at)
            saved[target], modules[target] = entry, name
    embeddings = tuple(t for t, m in modules.items() if f"{m}.lora_embedding_A" in entries)
    kind = next((e.dtype for n, e in entries.items() if ".lora_" in n), torch.float32)
    return Adapter(folder, base, config, products, saved, modules, embeddings, kind)


def _plain(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA" or config.get("use_dora"):
        named = "DoRA" if config.get("use_dora") else kind
        raise DataError(
            f"{folder}: an adapter of kind {named} is no product B A that is added to its base; save "
            "omni2vec.model.lora.merged(embedder), and merge that"
        )


def _target(name: str, names: Sequence[str], folder: Path, base: Path) -> str:
    found = matched(name, names)
    if found is None:
        raise DataError(f"{folder}: its base {base} has no tensor (or several) that {name} could be; is it the base?")
    return found


def _product(
    entries: Mapping[str, Entry], module: str, embedding: bool, config: Mapping[str, Any], at: Path
) -> Product:
    ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    pair = [entries.get(f"{module}.{end}") for end in ends]
    if pair[0] is None or pair[1] is None:
        raise DataError(f"{at}: of {module} it has one of {' and '.join(ends)} alone; copy the folder again")
    if any(len(e.shape) != 2 for e in pair if e):
        raise DataError(f"{at}: the adapter of {module} is no matrix (a convolution); merge it into its base first")
    a, b = (widened(read(e, 0, e.count)).float().view(e.shape) for e in pair if e)
    left, right = b * scaling(config, module, len(a)), a
    return Product(right.T, left.T) if embedding or config.get("fan_in_fan_out") else Product(left, right)


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) (arXiv:2312.03732), of one module: alpha_pattern and rank_pattern may give it
    numbers of its own."""
    from peft.utils.other import get_pattern_key

    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), module), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _fits(name: str, entry: Entry, product: Product, folder: Path) -> None:
    made = (product.left.shape[0], product.right.shape[1])
    if entry.shape != made:
        raise DataError(f"{folder}: its product for {name} is {made}, and the base's tensor {entry.shape}")


def one_base(adapters: Sequence[Adapter]) -> None:
    """Raises DataError where two adapters stand on different bases: their products belong to other weights."""
    first = adapters[0]
    for other in adapters[1:]:
        if other.base.folder == first.base.folder:
            continue
        if digest_of_folder(str(other.base.folder)) != digest_of_folder(str(first.base.folder)):
            raise DataError(
                f"{first.folder} stands on {first.base.folder}, and {other.folder} on {other.base.folder}: adapters on "
                "different bases cannot be merged; merge each into its base, and then the models"
            )


def rounded(folder: Path) -> str:
    """How the base that an adapter was trained on was rounded (model/quantize.py); "" for not."""
    record = folder / RECORD
    return str(json.loads(record.read_text(encoding="utf-8")).get("quantized", "")) if record.is_file() else ""


def summed(products: Sequence[Product | None], coefficients: Sequence[float]) -> Product:
    """Σ c_i ΔW_i as one product of the stacked factors, exact, of rank Σ r_i; None counts as zero."""
    there = [(p, c) for p, c in zip(products, coefficients, strict=True) if p is not None]
    return Product(
        torch.cat([p.left.double() * c for p, c in there], 1), torch.cat([p.right.double() for p, _ in there])
    )


def cut(product: Product, rank: int) -> tuple[Product, float, float]:
    """The nearest product of rank `rank` (Eckart-Young), and the squared norms of what it lost and of the whole.

    ΔW is not formed: QR of either factor, and an SVD of the small product of their triangles; float64.
    """
    q_left, r_left = torch.linalg.qr(product.left.double())
    q_right, r_right = torch.linalg.qr(product.right.double().T)
    u, s, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    left, right = (q_left @ u[:, :kept]) * root, root[:, None] * (v[:kept] @ q_right.T)
    pad = rank - kept
    if pad:  # a file has one rank: zeros beyond what the product has
        left = torch.cat([left, left.new_zeros(len(left), pad)], 1)
        right = torch.cat([right, right.new_zeros(pad, right.shape[1])])
    squares = s.square()
    return Product(left, right), float(squares[kept:].sum()), float(squares.sum())
