"""The Embedder: backbone, pooling, optional projection, temperature and Matryoshka cut; Items in, unit vectors out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.types import Item, Limits, Prompted, Side
from . import codes, inner, pool, terms
from .codes import Stored as Stored
from .template import Template
from .terms import LocalTerms as LocalTerms
from .terms import StateTerms as StateTerms
from .tokens import names
from .types import Attention, Backbone, Encoded, Format, Inputs, Towers


@dataclass(frozen=True)
class Fixed:
    """A fixed inverse temperature: logits are `value` times the cosine."""

    value: float = 50.0

    def __post_init__(self) -> None:
        if not self.value > 0:
            raise ValueError(f"scale Fixed({self.value}): expected a number above 0")


@dataclass(frozen=True)
class Learned:
    """A learned inverse temperature, kept as its logarithm so that it stays positive; clamped (arXiv:2103.00020)."""

    init: float = 20.0
    max: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.init <= self.max:
            raise ValueError(f"scale Learned(init={self.init}, max={self.max}): expected 0 < init <= max")


@dataclass(frozen=True)
class Settings:
    """What an embedder is, beside its weights. Saved with them."""

    pooling: pool.Pooling = "last"
    attention: Attention = "causal"
    mask_instruction: bool = False  # instruction tokens are left out of mean-type pooling
    normalise: bool = True
    projection: int = 0  # width of a learned linear head; 0: none
    latents: int = 512  # of latent-attention pooling
    dim: int = 0  # Matryoshka cut of the vectors given out (arXiv:2205.13147); 0: all
    matryoshka: tuple[int, ...] = ()  # sizes trained for
    scale: Fixed | Learned = field(default_factory=Fixed)
    limits: Limits = field(default_factory=Limits)
    tokens: int = 0  # embedding tokens at the tail of every prompt (model/tokens.py); 0: none
    int8: bool = False  # a learned step of int8 vectors (LSQ, arXiv:1902.08153)

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise ValueError(f"tokens={self.tokens}; expected 0 or more embedding tokens")


class Embedder(nn.Module):
    """A model that turns an instruction and Items into vectors.

    >>> embedder = Embedder.load("runs/quickstart/release")                       # doctest: +SKIP
    >>> embedder.encode(["a red circle", {"image": picture, "text": "make it blue"}])   # doctest: +SKIP
    """

    def __init__(self, backbone: nn.Module, template: Template, settings: Settings, adapter: Any = None) -> None:
        """`backbone` is a Backbone; `adapter` a peft model around its stock model, if one was attached."""
        super().__init__()
        if settings.pooling == "last" and settings.attention == "prefix":
            raise ValueError("attention 'prefix' needs a mean-type pooling: its last prompt token is like any other")
        if settings.tokens and not template.tail.endswith("".join(names(settings.tokens))):
            raise ValueError(
                f"tokens={settings.tokens}, and the prompts of this template do not end in so many embedding tokens: "
                f"call omni2vec.model.tokens.with_tokens(embedder, {settings.tokens}), which adds them"
            )
        if settings.tokens and settings.attention != "causal":
            raise ValueError(
                f"tokens={settings.tokens} with attention={settings.attention!r}: embedding tokens at the tail see all "
                "that is before them, for which attention is 'causal'"
            )
        self.backbone: Any = backbone
        self.template = template
        self.settings = settings
        self._adapter = (adapter,)  # in a tuple: its weights are the backbone's already, and must not be listed twice
        width = self.width
        if not 0 <= settings.dim <= (settings.projection or width):
            most = settings.projection or width
            raise ValueError(f"dim={settings.dim}: vectors have {most} components; give 1 to {most}, or 0 for all")
        self.latent = pool.LatentAttention(width, settings.latents) if settings.pooling == "latent" else None
        self.head = nn.Linear(width, settings.projection, bias=False) if settings.projection else None
        # Shape (1,): engines that shard parameters refuse scalars.
        scale = settings.scale
        start = torch.tensor([scale.init if isinstance(scale, Learned) else scale.value])
        self.log_scale = nn.Parameter(start.log(), requires_grad=isinstance(scale, Learned))
        # Components of a unit vector of D of them spread by 1 / sqrt(D): 127 steps hold four times that, and clip 6 in
        # 100,000 if they are normal. LSQ's own start for 8 bits holds 18 times that, most of its codes unused.
        step = torch.tensor([4 / (127 * math.sqrt(settings.projection or width))])
        self.log_step = nn.Parameter(step.log()) if settings.int8 else None

    # Loading and saving are in checkpoint.py; they are reached from here because that is where people look.
    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        attention: Attention | None = None,
        dim: int | None = None,
        trust_remote_code: bool = False,
    ) -> Embedder:
        """From a folder or hub name: our own checkpoints, released embedders in a known layout, or a plain model.

        device: where to put it; by default a GPU if there is one. dtype: of the weights; by default as saved, in half
        precision only on a GPU. attention, dim: in place of what the checkpoint says. Raises FileNotFoundError or
        ValueError with the folder and the remedy.
        """
        from .checkpoint import load

        return load(path, device=device, dtype=dtype, attention=attention, dim=dim, trust_remote_code=trust_remote_code)

    def save(self, folder: str | Path) -> Path:
        """Weights (safetensors), processor, template and settings, written aside and renamed."""
        from .checkpoint import save

        return save(self, Path(folder))

    @property
    def adapter(self) -> Any:
        """The peft model around the backbone's stock model, or None."""
        return self._adapter[0]

    @property
    def base(self) -> Backbone:
        """The backbone, typed."""
        backbone: Backbone = self.backbone
        return backbone

    @property
    def format(self) -> Format:
        return self.base.format

    @property
    def width(self) -> int:
        return self.base.width

    @property
    def size(self) -> int:
        """Components of whole vectors, which are trained."""
        return self.settings.projection or self.width

    @property
    def dim(self) -> int:
        """Components of the vectors given out."""
        return self.settings.dim or self.size

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Sizes to which the vectors given out may be cut, smallest first: those trained for, up to `dim`."""
        return tuple(sorted(d for d in self.settings.matryoshka if d <= self.dim))

    @property
    def limits(self) -> Limits:
        return self.settings.limits

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    @property
    def scale(self) -> Tensor:
        """The inverse temperature, (1,)."""
        log = self.log_scale.float() if self.log_scale.dtype in (torch.float16, torch.bfloat16) else self.log_scale
        scale = self.settings.scale
        if isinstance(scale, Learned):  # clamped in value alone: at its maximum it must still feel what would lower it
            log = log - (log - math.log(scale.max)).clamp(min=0).detach()
        return log.exp()

    @property
    def step(self) -> float | None:
        """The learned step of int8 vectors of `dim` components; None where none was learned. It is learned on whole
        vectors, and grows where they are cut (codes.step_at)."""
        return self._step_of(self.dim)

    def _step_of(self, dim: int) -> float | None:
        if self.log_step is None:
            return None
        return float(codes.step_at(self.log_step.detach().double().exp(), self.size, dim))

    @property
    def blocks(self) -> int:
        """Blocks of the language model; 0 where they cannot be told."""
        return len(inner.blocks_of(self.base.model))

    def layer(self, layer: int | Literal["middle"]) -> int:
        """The inner layer of that name: the number of blocks in front of it; "middle" is half of them, rounded down.
        Raises ValueError where there is no such layer."""
        blocks = self.blocks
        number = max(blocks // 2, 1) if layer == "middle" else layer
        inner.check((number,), blocks, self.base.model)
        return number

    def bound_scale(self) -> None:
        """Bring a learned scale back to its maximum, after an update."""
        scale = self.settings.scale
        if isinstance(scale, Learned):
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(scale.max))

    @property
    def digest(self) -> str:
        """Names weights and settings: equal digests, equal vectors."""
        from .checkpoint import digest_of

        return digest_of(self)

    def pool(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        """(T, width) -> (n, width)."""
        match self.settings.pooling:
            case "last":
                return pool.last_token(hidden, inputs)
            case "mean":
                return pool.mean(hidden, inputs)
            case "weighted":
                return pool.weighted_mean(hidden, inputs)
            case "cls":
                return pool.first_token(hidden, inputs)
            case "latent":
                assert self.latent is not None
                pooled: Tensor = self.latent(hidden, inputs)
                return pooled

    def forward(
        self,
        inputs: Inputs,
        local: LocalTerms | None = None,
        towers: Towers | None = None,
        layers: tuple[int, ...] = (),
        states: StateTerms | None = None,
    ) -> Encoded:
        """One packed row -> vectors (n, D), unit length and full size: training cuts them itself (Matryoshka).

        local: next-token terms, by name; logits are computed at labelled positions only. towers: outputs kept from an
        earlier call, in place of running the towers. layers: also the vectors after so many blocks of the language
        model (CoDiEmb, arXiv:2508.11442), pooled and normalised alike, without the final norm and the projection: of
        what the next block is given, so that a Qwen3-VL's visual features that are added behind a block are in it.
        states: terms of the embedding tokens' last states. Raises ValueError for a layer that the model has not, and
        for states where there are no embedding tokens.
        """
        if towers is None:
            towers = self.base.towers(inputs)
        blocks = inner.blocks_of(self.base.model) if layers else ()
        inner.check(layers, len(blocks), self.base.model)
        with inner.captured(blocks, layers) as seen:
            hidden = self.base.embed(inputs, towers, self.settings.attention)
        with torch.autocast(hidden.device.type, enabled=False):
            vectors = self.pool(hidden, inputs)
            if vectors.dtype in (torch.float16, torch.bfloat16):
                vectors = vectors.float()
            if self.head is not None:
                kind = next(self.head.parameters()).dtype  # half where all of the model is
                vectors = self.head(vectors.to(kind)).to(vectors.dtype)
            if self.settings.normalise:
                vectors = F.normalize(vectors, dim=-1)
            at = {layer: self._inner(inner.rows(seen[layer], inputs.lengths), inputs) for layer in layers}
            of_states = terms.of_states(hidden, inputs, states or {}, self.settings.tokens)
        scale = self.scale
        if self.log_step is not None:
            scale = torch.cat([scale, self.log_step.to(scale.dtype).exp()])
        of_answers = terms.of_answers(hidden, inputs, local or {}, self.base.logits)
        return Encoded(vectors, scale, of_answers, at, towers, of_states)

    def _inner(self, states: Tensor, inputs: Inputs) -> Tensor:
        pooled = self.pool(states, inputs)
        pooled = pooled.float() if pooled.dtype in (torch.float16, torch.bfloat16) else pooled
        return F.normalize(pooled, dim=-1) if self.settings.normalise else pooled

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by part: tower, projector, language, head, adapter (LoRA), new (pooling, scale...)."""
        ours = [p for m in (self.latent, self.head) if m is not None for p in m.parameters()] + [self.log_scale]
        ours += [] if self.log_step is None else [self.log_step]
        marks = ("lora_", "modules_to_save", "trainable_tokens")
        lora = {id(p) for n, p in self.named_parameters() if any(mark in n for mark in marks)}
        parts = {k: [p for p in ps if id(p) not in lora] for k, ps in self.base.groups().items()}
        parts["adapter"] = [p for p in self.parameters() if id(p) in lora]
        parts["new"] = ours
        return {k: [p for p in ps if p.requires_grad] for k, ps in parts.items()}

    def prompts(self, items: Iterable[Item], side: Side = "query", instruction: str = "") -> list[Prompted]:
        return [Prompted(item, side, instruction, key=f"input {i}") for i, item in enumerate(items)]

    def encode_items(
        self, items: Iterable[Item], *, side: Side = "query", instruction: str = "", progress: str = ""
    ) -> Tensor:
        """See model.types.Encoder."""
        from .encode import encode

        return encode(self, self.prompts(items, side, instruction), progress=progress)

    def encode(
        self,
        inputs: Any,
        *,
        instruction: str = "",
        side: Side = "query",
        dim: int | None = None,
        tokens: int | None = None,
        progress: bool | None = None,
        precision: Stored = "float",
    ) -> Tensor:
        """Vectors of inputs, (n, D) float32 on the CPU, unit length, in the order given; (D,) for a single input.

        An input is a string, a PIL image, a `Path` (its suffix says what it is), a dict of parts in order such as
        `{"image": picture, "text": "make it blue"}`, or an `Item`. dim: cut the vectors to their first components and
        normalise again. tokens: per packed batch. progress: a bar; by default for more than a few batches. precision:
        "int8" (by the learned step) and "binary" give codes (model/codes.py) in place of floats.
        """
        from .encode import as_items, encode

        codes.check(precision, self.step)
        items, single = as_items(inputs)
        label = "embedding" if progress or (progress is None and len(items) > 256) else ""
        out = encode(self, self.prompts(items, side, instruction), progress=label, tokens=tokens)
        if dim is not None:
            if not 1 <= dim <= self.dim:
                raise ValueError(f"dim={dim}: vectors have {self.dim} components; give 1 to {self.dim}")
            out = cut(out, dim)
        out = codes.stored(out, precision, self._step_of(out.shape[1]))
        return out[0] if single else out


def remade(
    embedder: Embedder,
    settings: Settings,
    adapter: Any,
    backbone: nn.Module | None = None,
    template: Template | None = None,
) -> Embedder:
    """An Embedder over the same backbone (or another of the same size), with other settings, another adapter or
    template. What was learned in pooling, head, scale and step goes with it, where the settings leave its shape and
    meaning as they were."""
    backbone = embedder.backbone if backbone is None else backbone
    if settings.mask_instruction != embedder.settings.mask_instruction:
        _mask_instruction(backbone, settings.mask_instruction)
    out = Embedder(backbone, embedder.template if template is None else template, settings, adapter)
    out = out.to(embedder.device)
    wanted = {k: v.shape for k, v in out.state_dict().items() if not k.startswith("backbone.")}
    if settings.scale != embedder.settings.scale:
        del wanted["log_scale"]
    if settings.projection != embedder.settings.projection:
        wanted.pop("log_step", None)  # of vectors of another size
    learned = {k: v for k, v in embedder.state_dict().items() if k in wanted and v.shape == wanted[k]}
    out.load_state_dict(learned, strict=False)
    return out.train(embedder.training)


def _mask_instruction(backbone: Any, on: bool) -> None:
    """Where the tokens that a mean may see are marked: in the host half, as it collates."""
    if not hasattr(backbone.format, "tokens"):
        raise ValueError(f"mask_instruction={on}: {type(backbone).__name__} has no instruction to leave out of a mean")
    backbone.format.tokens = replace(backbone.format.tokens, mask_instruction=on)


def cut(vectors: Tensor, dim: int) -> Tensor:
    """The first `dim` components, unit length again."""
    return F.normalize(vectors[:, :dim], dim=-1)


def freeze(embedder: Embedder, parts: Sequence[str]) -> None:
    """Parameters of the named parts ("tower", "projector", "language", "head", "scale", "step") stop learning."""
    named = {**embedder.base.groups(), "scale": [embedder.log_scale]}
    if embedder.log_step is not None:
        named["step"] = [embedder.log_step]
    for part in parts:
        if part not in named:
            raise ValueError(f"freeze={part!r}: this model's parts are {', '.join(named)}")
        if not named[part]:
            own = ", ".join(k for k, v in named.items() if v)
            raise ValueError(
                f"freeze={part!r}: this model has no parameters there (a head tied to the embeddings belongs to "
                f"'language'); it has {own}"
            )
        for p in named[part]:
            p.requires_grad_(False)
