"""The Embedder: backbone, pooling, optional projection, temperature and Matryoshka cut; Items in, unit vectors out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.types import Item, Limits, Prompted, Side
from . import pool
from .template import Template
from .types import Attention, Backbone, Encoded, Format, Inputs, Towers

# name -> (groups whose answers it takes, (logits, labels) -> (sum, count))
LocalTerms = Mapping[str, tuple[frozenset[int], Callable[[Tensor, Tensor], tuple[Tensor, int]]]]


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
    def dim(self) -> int:
        """Components of the vectors given out."""
        return self.settings.dim or self.settings.projection or self.width

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

    def forward(self, inputs: Inputs, local: LocalTerms | None = None, towers: Towers | None = None) -> Encoded:
        """One packed row -> vectors (n, D), unit length and full size: training cuts them itself (Matryoshka).

        local: next-token terms, by name; logits are computed at labelled positions only. towers: outputs kept from an
        earlier call, in place of running the towers.
        """
        if towers is None:
            towers = self.base.towers(inputs)
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
        return Encoded(vectors, self.scale, self._local(hidden, inputs, local or {}), towers=towers)

    def _local(self, hidden: Tensor, inputs: Inputs, terms: LocalTerms) -> dict[str, tuple[Tensor, int]]:
        if not terms:
            return {}
        owner = torch.tensor(inputs.groups).repeat_interleave(torch.tensor(inputs.lengths)).to(hidden.device)
        out = {}
        for name, (groups, term) in terms.items():
            mine = (inputs.labels >= 0) & torch.isin(owner, torch.tensor(sorted(groups), device=hidden.device))
            rows = mine.nonzero().squeeze(1)  # none in this chunk: the head still runs, on zero rows, on every rank
            out[name] = term(self.base.logits(hidden[rows]), inputs.labels[rows])
        return out

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by part: tower, projector, language, head, adapter (LoRA), new (pooling, scale)."""
        ours = [p for m in (self.latent, self.head) if m is not None for p in m.parameters()] + [self.log_scale]
        lora = {id(p) for n, p in self.named_parameters() if "lora_" in n or "modules_to_save" in n}
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
    ) -> Tensor:
        """Vectors of inputs, (n, D) float32 on the CPU, unit length, in the order given; (D,) for a single input.

        An input is a string, a PIL image, a `Path` (its suffix says what it is), a dict of parts in order such as
        `{"image": picture, "text": "make it blue"}`, or an `Item`. dim: cut the vectors to their first components and
        normalise again. tokens: per packed batch. progress: a bar; by default for more than a few batches.
        """
        from .encode import as_items, encode

        items, single = as_items(inputs)
        label = "embedding" if progress or (progress is None and len(items) > 256) else ""
        out = encode(self, self.prompts(items, side, instruction), progress=label, tokens=tokens)
        if dim is not None:
            if not 1 <= dim <= self.dim:
                raise ValueError(f"dim={dim}: vectors have {self.dim} components; give 1 to {self.dim}")
            out = cut(out, dim)
        return out[0] if single else out


def remade(embedder: Embedder, settings: Settings, adapter: Any) -> Embedder:
    """An Embedder over the same backbone, with other settings or another adapter. What was learned in pooling, head and
    scale goes with it, where the settings leave its shape and meaning as they were."""
    out = Embedder(embedder.backbone, embedder.template, settings, adapter).to(embedder.device)
    wanted = {k: v.shape for k, v in out.state_dict().items() if not k.startswith("backbone.")}
    if settings.scale != embedder.settings.scale:
        del wanted["log_scale"]
    learned = {k: v for k, v in embedder.state_dict().items() if k in wanted and v.shape == wanted[k]}
    out.load_state_dict(learned, strict=False)
    return out.train(embedder.training)


def cut(vectors: Tensor, dim: int) -> Tensor:
    """The first `dim` components, unit length again."""
    return F.normalize(vectors[:, :dim], dim=-1)


def freeze(embedder: Embedder, parts: Sequence[str]) -> None:
    """Parameters of the named parts ("tower", "projector", "language", "head", "scale") stop learning."""
    named = {**embedder.base.groups(), "scale": [embedder.log_scale]}
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
