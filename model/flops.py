"""Floating-point operations of a packed row: counted on the host, from its lengths and grids and the model's modules.

What is counted is the arithmetic of real tokens: products of matrices (2 m n k), and attention's two, of which causal
attention has half. Left out are norms, rotations, softmax, pooling, projection and the loss (under 1% together), and
all waste: padding, recomputation, a second forward. So a utilisation made of it
compares trainers, not kernels (the "model FLOPs" of arXiv:2204.02311).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from torch import nn

from .embedder import Embedder
from .types import Attention, Inputs


@dataclass(frozen=True)
class Flops:
    """Of one forward, by part. head: logits at labelled positions, which only an autoregressive loss computes."""

    tower: float = 0.0
    projector: float = 0.0  # from the tower's width to the language model's
    language: float = 0.0
    head: float = 0.0
    adapter: float = 0.0  # LoRA's two thin products, wherever they sit

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Rates:
    """What a model costs per unit. Made once, before an engine shards the weights; `count` is then microseconds a row.

    Per patch, per media token, per language token and per label: 2 for each weight that it meets. Attention: 4 times
    the heads' width for each pair of tokens, in each layer; windows holds one entry a layer, the tokens that a token
    sees back (language) or the merged tokens of a window's side (tower), 0 for all.
    """

    token: float
    label: float
    pair: float
    windows: tuple[int, ...]
    attention: Attention
    token_adapter: float = 0.0
    patch: float = 0.0
    media_token: float = 0.0
    patch_adapter: float = 0.0
    media_token_adapter: float = 0.0
    patch_pair: float = 0.0
    tower_windows: tuple[int, ...] = ()
    merge: int = 1  # patches of a media token's side

    def count(self, inputs: Inputs) -> Flops:
        """Of a row's forward. Call it before the row is moved: grids and labels are read, which on a device waits."""
        pairs = sum(
            sum(_seen(n, p, w, self.attention) for n, p in zip(inputs.lengths, inputs.prefix, strict=True)) * count
            for w, count in _counts(self.windows)
        )
        grids = [g for name, grid in inputs.media.items() if name.endswith("_grid") for g in grid.tolist()]
        patches = sum(t * h * w for t, h, w in grids)
        media = patches / self.merge**2
        seen = sum(
            sum(_within(t, h, w, window, self.merge) for t, h, w in grids) * count
            for window, count in _counts(self.tower_windows)
        )
        tokens = sum(inputs.lengths)
        labels = int((inputs.labels >= 0).sum())
        return Flops(
            tower=patches * self.patch + seen * self.patch_pair,
            projector=media * self.media_token,
            language=tokens * self.token + pairs * self.pair,
            head=labels * self.label,
            adapter=tokens * self.token_adapter + patches * self.patch_adapter + media * self.media_token_adapter,
        )


def rates(embedder: Embedder) -> Rates:
    """Read off the modules: every linear map of the language model meets each token, every one of the tower each patch,
    its mergers' each media token."""
    model: Any = embedder.base.model
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    heads = int(config.num_attention_heads)
    width = heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    sums: dict[str, float] = dict.fromkeys(("language", "tower", "projector"), 0.0)
    thin = dict(sums)
    for name, module in model.named_modules():
        weights = _weights(module, config) if module is not head else 0.0
        if weights and "pooler" not in name:  # BERT's, which nothing reads
            inside = name.split(".")
            part = "language" if "visual" not in inside else "projector" if "merger" in name else "tower"
            (thin if "lora_" in name else sums)[part] += 2.0 * weights
    tower = getattr(embedder.backbone, "tower", None)
    return Rates(
        token=sums["language"],
        label=2.0 * head.in_features * head.out_features if isinstance(head, nn.Linear) else 0.0,
        pair=4.0 * width,
        windows=_language_windows(config),
        attention=embedder.settings.attention,
        token_adapter=thin["language"],
        patch=sums["tower"],
        media_token=sums["projector"],
        patch_adapter=thin["tower"],
        media_token_adapter=thin["projector"],
        patch_pair=4.0 * tower.blocks[0].attn.proj.in_features if tower is not None else 0.0,
        tower_windows=_tower_windows(tower) if tower is not None else (),
        merge=int(model.config.vision_config.spatial_merge_size) if tower is not None else 1,
    )


def count(embedder: Embedder, inputs: Inputs) -> Flops:
    """Of one row's forward. For many rows make `rates(embedder)` once and call its `count`."""
    return rates(embedder).count(inputs)


def model_flops(flops: Flops, embedder: Embedder) -> float:
    """Of a training step whose forwards add up to `flops`: forward, and backward by what is trained.

    A part's backward costs one forward for the gradient of its weights, if they are trained, and one for the gradient
    of its inputs, if anything in it or before it is trained. Frozen tower and LoRA: V + 2L; all trained: 3V + 3L.
    """
    return _weighted(flops, _factors(embedder))


def counter(embedder: Embedder) -> Callable[[Inputs], float]:
    """`model_flops` of single rows, all that does not hang on the row worked out beforehand: what a step counts with.
    Made when it is settled what is trained, before an engine shards the weights."""
    costs, factors = rates(embedder), _factors(embedder)
    return lambda inputs: _weighted(costs.count(inputs), factors)


def _weighted(flops: Flops, factors: Flops) -> float:
    return float(sum(a * b for a, b in zip(astuple(flops), astuple(factors), strict=True)))


def _factors(embedder: Embedder) -> Flops:
    """Forwards' worth of a training step, by part."""
    groups = embedder.base.groups()
    lora = {id(p) for n, p in embedder.named_parameters() if "lora_" in n}
    flows, found = False, {}
    for part in ("tower", "projector", "language"):
        trained = [p for p in groups.get(part, ()) if p.requires_grad]
        own = any(id(p) not in lora for p in trained)
        flows = flows or bool(trained)
        found[part] = 1.0 + own + flows
    stock: Any = embedder.base.model
    head = stock.get_output_embeddings()
    own = head is not None and head.weight.requires_grad
    return Flops(**found, head=1.0 + own + (flows or own), adapter=3.0)


def _weights(module: nn.Module, config: Any) -> float:
    """Weights that one token of a module's own meets: by its declared sizes, since quantised weights are packed."""
    if isinstance(module, nn.Linear):
        return float(module.in_features * module.out_features)
    if isinstance(module, nn.Conv3d):  # the patch embedding: one patch is one output position
        return float(module.in_channels * module.out_channels * module.kernel_size[0] * module.kernel_size[1] ** 2)
    if type(module).__name__ == "Conv1D":  # GPT-2's linear map, which is no nn.Linear
        return float(sum(p.numel() for p in module.parameters(recurse=False) if p.ndim == 2))
    experts = [p for p in module.parameters(recurse=False) if p.ndim == 3]  # stacked; a token meets few of them
    chosen = getattr(config, "num_experts_per_tok", None)
    return sum(p.numel() / len(p) * chosen for p in experts) if chosen else 0.0


def _language_windows(config: Any) -> tuple[int, ...]:
    window = int(getattr(config, "sliding_window", None) or 0)
    layers = int(config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _tower_windows(tower: Any) -> tuple[int, ...]:
    side = int(getattr(tower.config, "window_size", 0) or 0) // tower.config.spatial_merge_size
    full = set(getattr(tower.config, "fullatt_block_indexes", None) or ())
    side //= tower.config.patch_size
    return tuple(0 if not side or i in full else side for i in range(len(tower.blocks)))


def _counts(windows: Sequence[int]) -> Iterator[tuple[int, int]]:
    for window in dict.fromkeys(windows):
        yield window, windows.count(window)


def _seen(length: int, prefix: int, window: int, attention: Attention) -> float:
    """Pairs of tokens that meet in one segment; of a causal one half of the square, its diagonal counted half."""
    if attention == "prefix":
        answer = length - prefix
        return prefix**2 + prefix * answer + answer**2 / 2
    near = min(window or length, length)  # a windowed square is a band along the diagonal
    half = near * length - near**2 / 2
    return half if attention == "causal" else 2 * half


def _within(t: int, h: int, w: int, window: int, merge: int) -> float:
    """Pairs of patches that meet in one picture, or in the t frame pairs of a clip, which do not see each other."""
    if not window:
        return float(t * (h * w) ** 2)
    rows, columns = (_squares(side // merge, window) for side in (h, w))
    return float(t * rows * columns * merge**4)


def _squares(length: int, window: int) -> int:
    """Sum of the squares of the pieces that a side is cut into."""
    whole, rest = divmod(length, window)
    return whole * window**2 + rest**2
