"""The Stage step: it moves a model's weights along the gradient of objectives on sources."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from ..data.deck import WINDOW
from ..data.loader import Loader, Skipped
from ..data.mix import Feed, Mix, Weighted
from ..data.schedules import Schedule, at, ends
from ..data.types import Limits, Source, Step, Where
from ..model.embedder import Embedder, Fixed, Learned
from ..model.lora import Lora
from ..model.pool import Pooling
from ..model.types import Attention, Inputs
from .engine import Engine, Precision
from .gather import Group
from .health import Checkup
from .loss import Bound, nested, opened
from .monitor import Wandb
from .objectives.infonce import InfoNCE
from .objectives.matryoshka import Matryoshka
from .objectives.types import Contrastive, Layered, Objective, Stepped
from .optim import AdamW
from .resume import State
from .step import Memory
from .zero import Zero

_WORDS: Mapping[str, tuple[str | None, ...]] = {
    "precision": get_args(Precision),
    "memory": ("auto", *get_args(Memory)),
    "take": ("last", "best"),
    "on_error": ("raise", "skip"),
    "pooling": (None, *get_args(Pooling)),
    "attention": (None, *get_args(Attention)),
}


@dataclass(frozen=True)
class Validate:
    """Evaluation while training. metric: "mean" of the tasks' main metrics, or one task's name; patience: evaluations
    without a gain of `gain` before the stage stops early, 0 for never."""

    data: tuple[Source, ...]
    every: int = 100
    limit: int = 100
    metric: str = "mean"
    patience: int = 0
    gain: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One stage of training. Its output is an embedder's folder.

    objectives: by name; a feed names the one that its rows go to. batch, sub_batch: rows; sub_batch 0 is the whole
    batch. mix: how the feeds share the batches (data/mix.py); window: shards whose rows are shuffled together.
    temperature: of the contrastive objectives, which may follow the stage's progress; None leaves it to `scale`, its
    inverse. scale, pooling, attention, mask_instruction (leave it out of a mean), tokens (of the embedding, at the tail
    of every prompt: model/tokens.py), limits: of the embedder, None as it is. An objective on int8 vectors gives it a
    step to learn, and the prefixes of one on prefixes are recorded in its settings. chunk_tokens: tokens of a packed
    row, "auto" to measure what fits. memory: see train/step.py; "auto" is the fastest that fits memory_gb (0: half of
    what is free). clip: greatest gradient norm. keep, keep_best: newest, and best-scored, checkpoints kept; take: which
    weights are the output. precision: see train/precision.py. zero: how the state is split over the ranks; None is
    whole weights on each. compile: torch.compile, block by block. checkup: how often the vectors are looked at.
    stall_s: seconds without progress until a rank is said to hang; 0 is ten times a step, at least five minutes.
    """

    resumes = True  # after a kill, `make` finds its checkpoints
    parallel = True  # `make` is called by every rank of a group, where there is one
    name: str
    model: Step | str
    feeds: tuple[Feed, ...]
    steps: int
    batch: int = 64
    sub_batch: int = 0
    mix: Mix = field(default_factory=Weighted)
    window: int = WINDOW
    objectives: Mapping[str, tuple[Objective, ...]] = field(default_factory=lambda: {"default": (InfoNCE(),)})
    optimizer: AdamW = field(default_factory=AdamW)
    lora: Lora | None = None
    freeze: tuple[str, ...] = ()
    scale: Fixed | Learned | None = None
    temperature: float | Schedule | None = None
    pooling: Pooling | None = None
    attention: Attention | None = None
    mask_instruction: bool | None = None
    tokens: int | None = None
    limits: Limits | None = None
    precision: Precision = "fp32"
    zero: Zero | None = field(default=None, compare=False)
    compile: bool = field(default=False, compare=False)
    memory: Memory | Literal["auto"] = "auto"
    memory_gb: float = field(default=0.0, compare=False)
    chunk_tokens: int | Literal["auto"] = "auto"
    clip: float = 1.0
    validate: Validate | None = None
    save_every: int = field(default=200, compare=False)
    keep: int = field(default=1, compare=False)
    keep_best: int = field(default=1, compare=False)
    take: Literal["last", "best"] = "last"
    workers: int = field(default=0, compare=False)
    prefetch: int = field(default=2, compare=False)
    on_error: Literal["raise", "skip"] = "raise"
    max_skipped: int = field(default=100, compare=False)
    seed: int = 0
    wandb: Wandb | None = field(default=None, compare=False)
    checkup: Checkup = field(default_factory=Checkup, compare=False)
    stall_s: float = field(default=0.0, compare=False)
    device: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        self._check_values()
        for feed in self.feeds:
            if feed.objective not in self.objectives:
                raise ValueError(
                    f"stage {self.name!r}: source {feed.source.name!r} wants objective {feed.objective!r}; "
                    f"there are {', '.join(self.objectives)}"
                )
        unused = set(self.objectives) - {f.objective for f in self.feeds}
        if unused:
            raise ValueError(f"stage {self.name!r}: no source goes to objective {sorted(unused)[0]!r}")
        self._check_mix()
        if not self.feeds or self.steps < 1 or self.batch < 1:
            given = f"feeds={len(self.feeds)}, steps={self.steps}, batch={self.batch}"
            raise ValueError(f"stage {self.name!r}: {given}; expected 1 or more of each")
        if self.take == "best" and self.validate is None:
            raise ValueError(f"stage {self.name!r}: take='best' needs validate=Validate(...)")

    def _check_mix(self) -> None:
        """That a mix which adapts has something to go by."""
        adaptive = self.mix.adaptive
        if adaptive is None:
            return
        if moving := [f.source.name for f in self.feeds if not isinstance(f.weight, int | float)]:
            given = f"a mix that adapts, and a scheduled weight of {moving[0]!r}"
            raise ValueError(f"stage {self.name!r}: {given}; shares can follow one of them only")
        if adaptive.by == "score" and self.validate is None:
            raise ValueError(f"stage {self.name!r}: shares by 'score' need validate=Validate(...)")
        if adaptive.by == "score" and self.validate is not None:
            scored, fed = {s.name for s in self.validate.data}, [f.source.name for f in self.feeds]
            if not scored & set(fed):
                given = f"{', '.join(sorted(scored))} are scored and {', '.join(fed)} are fed"
                raise ValueError(
                    f"stage {self.name!r}: shares by 'score': {given}; expected equal names (Shards(name=))"
                )
        if adaptive.by == "loss" and not any(isinstance(o, Contrastive) for os in self.objectives.values() for o in os):
            raise ValueError(f"stage {self.name!r}: shares by 'loss' need a contrastive objective; take by='score'")

    def _check_values(self) -> None:
        """A word that is none of the field's would be taken for its last; a number out of range, for what it is not."""
        for name, words in _WORDS.items():
            value = getattr(self, name)
            if value not in words:
                known = ", ".join(map(repr, words))
                raise ValueError(f"stage {self.name!r}: {name}={value!r}; expected one of {known}")
        fixed = self.chunk_tokens if self.chunk_tokens != "auto" else 1
        every = self.validate.every if self.validate else 1
        for name, number, least in (
            ("chunk_tokens", fixed, 1),
            ("clip", self.clip, 0),
            ("memory_gb", self.memory_gb, 0),
            ("save_every", self.save_every, 1),
            ("keep", self.keep, 1),
            ("keep_best", self.keep_best, 0),
            ("stall_s", self.stall_s, 0),
            ("tokens", self.tokens or 0, 0),
            ("window", self.window, 1),
            ("validate.every", every, 1),
        ):
            if not number >= least:
                raise ValueError(f"stage {self.name!r}: {name}={number!r}; expected {least} or more")
        warm = self.temperature is None or all(0 < t < math.inf for t in ends(self.temperature))
        if not warm or (self.temperature is not None and self.scale is not None):
            given = f"temperature={self.temperature!r}, scale={self.scale!r}"
            raise ValueError(f"stage {self.name!r}: {given}; expected a temperature above 0, and then no scale")
        if empty := [name for name, objectives in self.objectives.items() if not objectives]:
            raise ValueError(f"stage {self.name!r}: objectives[{empty[0]!r}] is empty; give it one, such as InfoNCE()")

    def make(self, out: Path, where: Where) -> None:
        """Train, from where a killed run left off if `out` holds its checkpoints. Called by all ranks of a group."""
        from .loop import run

        run(self, out, where)

    def outside(self, where: Where) -> Mapping[str, str]:
        """The digest of a model that no step made."""
        from ..model.checkpoint import digest_of_folder

        return {f"model {self.model}": digest_of_folder(self.model)} if isinstance(self.model, str) else {}

    def bounds(self, where: Where | None = None) -> tuple[Bound, ...]:
        """The objectives with the indices of their sources; with `where`, and what other steps made for them."""
        return tuple(
            Bound(
                name,
                tuple(o if where is None else opened(o, where) for o in objectives),
                frozenset(i for i, f in enumerate(self.feeds) if f.objective == name),
                tuple(objectives),
            )
            for name, objectives in self.objectives.items()
        )

    def _each(self) -> Iterator[Objective]:
        """Every objective on the embedder's own vectors, and those inside it."""
        for objectives in self.objectives.values():
            for objective in objectives:
                if not isinstance(objective, Layered):  # what an inner layer learns, the output does not give
                    yield from nested(objective)

    def _prefixes(self, whole: int) -> tuple[int, ...]:
        """The sizes that vectors are trained for, largest first; none where no objective cuts them."""
        dims = {d or whole for o in self._each() if isinstance(o, Matryoshka) for d in o.dims}
        return tuple(sorted(dims, reverse=True))

    def base(self, where: Where) -> str:
        """The digest of the model that this stage starts from: what is not trained is in no checkpoint."""
        from ..model.checkpoint import digest_of_folder

        return digest_of_folder(self.model if isinstance(self.model, str) else str(where(self.model)))

    def load(self, where: Where) -> Embedder:
        """The model that this stage starts from, with its parts frozen and adapters attached."""
        import torch

        from ..model.embedder import freeze, remade
        from ..model.lora import attach, merged
        from ..model.quantize import quantize
        from ..model.tokens import with_tokens

        path = self.model if isinstance(self.model, str) else where(self.model)
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        rounded = self.lora is not None and self.lora.quantized
        embedder = Embedder.load(path, device="cpu" if rounded else device, dtype="float32")
        old = embedder.settings
        scale = self.scale if self.temperature is None else Fixed(1 / at(self.temperature, 1.0))
        if not old.normalise:
            raise ValueError(
                f"stage {self.name!r}: {path} gives vectors of any length, objectives compare cosines; "
                'set "normalise": true in its omni2vec.json, or add a Normalize module to its folder'
            )
        settings = replace(
            old,
            scale=old.scale if scale is None else scale,
            pooling=old.pooling if self.pooling is None else self.pooling,
            attention=old.attention if self.attention is None else self.attention,
            mask_instruction=old.mask_instruction if self.mask_instruction is None else self.mask_instruction,
            int8=old.int8 or any(isinstance(o, Stepped) and o.stepped for o in self._each()),
            matryoshka=self._prefixes(embedder.size) or old.matryoshka,
            limits=replace(old.limits if self.limits is None else self.limits, draft=False),  # a draft is for training
        )
        if settings != old:
            embedder = remade(embedder, settings, embedder.adapter)
        if self.tokens is not None and self.tokens != embedder.settings.tokens:
            embedder = with_tokens(embedder if self.lora is None else merged(embedder), self.tokens)
        if self.lora is not None:
            embedder = merged(embedder)
            if self.lora.quantized:
                compute = torch.float32 if self.precision == "fp32" else torch.bfloat16
                embedder = quantize(embedder, self.lora.quantized, device=device, compute=compute)
            embedder = attach(embedder, self.lora)
        freeze(embedder, self.freeze)
        for part, parameters in embedder.parts().items():
            for p in parameters if self.optimizer.rates.get(part) == 0 else ():
                p.requires_grad_(False)
        return embedder

    def loader(
        self, embedder: Embedder, where: Where, budget: int, state: State | None = None, group: Group | None = None
    ) -> Loader[Inputs]:
        """This stage's batches, from where `state` stands; of a group, this rank's chunks of them."""
        state = state or State()
        return Loader(
            [feed.source.open(where) for feed in self.feeds],
            self.feeds,
            embedder.format,
            self.limits or embedder.limits,
            batch=self.batch,
            sub_batch=self.sub_batch or self.batch,
            seed=self.seed,
            budget=budget,
            workers=self.workers,
            prefetch=self.prefetch,
            pin=embedder.device.type == "cuda",
            on_error=self.on_error,
            max_skipped=self.max_skipped,
            start=state.step,
            stop=self.steps,
            stage=self.name,
            skipped=Skipped(state.skipped_sources, tuple(state.skipped_keys), state.lacking),
            stretch=self.chunk_tokens == "auto" or budget < self.chunk_tokens,  # halved for want of memory
            ranks=(group or Group()).ranks,
            mix=self.mix,
            window=self.window,
            steps=self.steps,
            told=state.mixer.told,
            where=where,
        )

    def engine(self, embedder: Embedder, group: Group | None = None) -> Engine:
        from ..model.compile import compiled
        from .zero_engine import engine_of

        if self.compile:
            if self.zero is not None and self.zero.used == 3:
                raise ValueError(
                    f"stage {self.name!r}: compile=True with ZeRO-3, which gathers weights as it goes; drop either"
                )
            embedder = compiled(embedder)
        return engine_of(embedder, self.optimizer, self.precision, self.clip, group or Group(), self.zero)

    def plan(self, where: Where, ranks: int = 1) -> Mapping[str, str]:
        """What it will take on each of `ranks` ranks, for `omni2vec plan`."""
        from .preview import estimates

        if self.zero is not None and self.zero.used:
            self.zero.config(self.precision, self.clip)  # what contradicts is said before anything runs
        return estimates(self, where, ranks)

    def preview(self, step: int, where: Where) -> Iterator[str]:
        """Batch `step` as the model will see it, for `omni2vec show`."""
        from .preview import preview

        return preview(self, step, where)
