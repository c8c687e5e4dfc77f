"""A small, balanced sample of rows on which models are compared: its contrastive loss, and that loss's exact gradient.

Every source gives as many rows and counts the same. The temperature is the sample's own, for a model's would make its
loss no other's measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor

from ..data.loader import Loader
from ..data.mix import Feed
from ..data.planned import Plan
from ..data.types import Clock, DataError, Source, Where
from ..model.embedder import Embedder, freeze
from ..model.lora import merged
from ..model.types import Inputs
from .engine import Local
from .loss import Bound
from .objectives.infonce import InfoNCE
from .optim import AdamW
from .step import cached_step


@dataclass(frozen=True)
class Sample:
    """rows: of each source in a batch (fewer where it has no more), batches: of each. negatives: given ones that are
    drawn a row. chunk_tokens: tokens that are run at a time, which is what memory goes by."""

    data: tuple[Source, ...]
    rows: int = 64
    batches: int = 1
    temperature: float = 0.05
    negatives: int = 0
    chunk_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.data:
            raise DataError("a sample needs data: at least one source of rows")
        for name, least in (("rows", 2), ("batches", 1), ("negatives", 0), ("chunk_tokens", 1)):
            if getattr(self, name) < least:
                raise DataError(f"sample: {name}={getattr(self, name)}; expected {least} or more")
        if not self.temperature > 0:
            raise DataError(f"sample: temperature={self.temperature}; expected a number above 0")


def loaded(path: str) -> Embedder:
    """A model whose weights all have gradients: float32, adapters merged in, the scale apart."""
    embedder = merged(Embedder.load(path, dtype="float32"))
    for p in embedder.parameters():
        p.requires_grad_(True)
    freeze(embedder, ("scale",))  # the sample has a temperature of its own
    return embedder.eval()  # no dropout


@dataclass
class Probing:
    """The batches of a sample, planned once, for one embedder, whose weights may change between calls."""

    embedder: Embedder
    sample: Sample
    where: Where
    loaders: list[Loader[Inputs]] = field(default_factory=list)
    plans: list[tuple[Loader[Inputs], Plan]] = field(default_factory=list)

    def __enter__(self) -> Probing:
        for source in self.sample.data:
            loader = self._loader(source)
            self.loaders.append(loader)
            self.plans += [(loader, loader.plan(step)) for step in range(self.sample.batches)]
        self.engine = Local(self.embedder, AdamW())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for loader in self.loaders:
            loader.close()

    def _loader(self, source: Source) -> Loader[Inputs]:
        sample, rows = self.sample, source.open(self.where)
        if len(rows) < 2:
            raise DataError(
                f"source {rows.name!r} has {len(rows)} rows; with none to confuse it with, a row tells nothing"
            )
        batch = min(sample.rows, len(rows))
        return Loader(
            [rows],
            [Feed(source, negatives=sample.negatives)],
            self.embedder.format,
            self.embedder.limits,
            batch=batch,
            sub_batch=batch,
            seed=sample.seed,
            budget=sample.chunk_tokens,
            stop=sample.batches,
            steps=sample.batches,
            stage="sample",
            stretch=True,
            where=self.where,
        )

    def gradients(self, see: Callable[[str, Tensor], None] = lambda name, gradient: None) -> Iterator[float]:
        """The loss of each batch; before it comes, `see` is given the gradient of each parameter, by name."""
        for loader, plan in self.plans:
            done = cached_step(
                self.engine,
                plan,
                loader.chunks(plan),
                [Bound("sample", (InfoNCE(),), frozenset({0}))],
                Clock(0, 0.0, self.sample.seed),
                "vectors",
                again=loader.again,
                plain=True,
                scale=1 / self.sample.temperature,
            )
            if done.finite:
                for name, p in self.embedder.named_parameters():
                    if p.requires_grad and p.grad is not None:
                        see(name, p.grad)
            self.engine.forget()
            yield done.loss

    def loss(self, see: Callable[[str, Tensor], None] = lambda name, gradient: None) -> float:
        """The mean over all batches; inf where a batch has none."""
        found = torch.tensor(list(self.gradients(see)), dtype=torch.float64)
        return float(found.mean()) if bool(found.isfinite().all()) else float("inf")


def names_of(embedder: Embedder) -> dict[str, Tensor]:
    """Its weights by the names that files have, tied ones once: parameters, and buffers with fractions."""
    state, seen, found = embedder.state_dict(keep_vars=True), set[int](), dict[str, Tensor]()
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name.removeprefix("backbone.model.")] = tensor
    return found


def filed(name: str) -> str:
    """The name that a file has for a parameter."""
    return name.removeprefix("backbone.model.")
