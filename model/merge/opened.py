"""Models opened for a merge: folders, hub names and adapters as tensors of one set of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.types import DataError
from ..checkpoint import snapshot
from .adapters import Adapted, is_adapter, one_base, open_adapter, rounded
from .alike import Model, aligned, same_class, same_files, tied
from .types import Rule
from .weights import Folder, Key, Tensors


@dataclass(frozen=True)
class Plan:
    """What is merged: models under the names of the first, θ0, and the copies of tied weights."""

    models: tuple[Model, ...]
    tensors: tuple[Tensors, ...]
    base: Tensors | None
    copies: Mapping[Key, Key]
    told: tuple[str, ...]
    origin: Path | None = None  # the base's folder

    @property
    def first(self) -> Tensors:
        return self.tensors[0]

    @property
    def elements(self) -> int:
        return sum(e.count for e in self.first.entries.values())


def prepare(
    models: Sequence[str | Path],
    rule: Rule,
    base: str | Path | None = None,
    names: Sequence[str] = (),
    asking: str = "",
) -> Plan:
    """Everything that can be refused before a byte is written. asking: who works with the rule, for errors."""
    opened, told = open_all(models, rule, names)
    if base is None and rule.needs_base:
        base = _default_base(opened, asking or type(rule).__name__)
    origin = open_model(base, f"the base {base}") if base is not None else None
    tensors = tuple(m.tensors if i == 0 else aligned(opened[0], m) for i, m in enumerate(opened))
    theta = None
    if origin is not None:
        same_class(opened[0], origin)
        theta = aligned(opened[0], origin, base=True)
        if lacking := [str(k) for k in tensors[0].entries if k not in theta.entries]:
            told.append(f"the base lacks {', '.join(lacking)}: the mean of the models stands for it")
    folder = origin.folder if origin is not None else None
    return Plan(tuple(opened), tensors, theta, tied(opened[0]), tuple(told), folder)


def open_all(models: Sequence[str | Path], rule: Rule, names: Sequence[str]) -> tuple[list[Model], list[str]]:
    """The models, if they are alike, and what is told of them."""
    if len(models) < 2:
        raise DataError(f"{len(models)} model{'s' * (len(models) != 1)} to merge; give two or more")
    rule.check(len(models))
    labels = list(names) or [str(m) for m in models]
    opened = [open_model(m, label) for m, label in zip(models, labels, strict=True)]
    adapters = [m.tensors.adapter for m in opened if isinstance(m.tensors, Adapted)]
    if adapters:
        one_base(adapters)
    return opened, same_files(opened)


def open_model(at: str | Path, label: str = "") -> Model:
    """A folder or hub name as Tensors; an adapter as its base with its products in it."""
    try:
        folder = snapshot(at)
    except FileNotFoundError as error:
        raise DataError(str(error)) from error
    if not is_adapter(folder):
        return Model(Folder.of(folder, label or str(at)), folder, folder)
    if kind := rounded(folder):
        raise DataError(
            f"{at}: its base was rounded to {kind}, so base + ΔW is not what it learned; save "
            "omni2vec.model.lora.merged(embedder) and merge that, or give a rank to keep an adapter"
        )
    adapter = open_adapter(folder)
    return Model(Adapted.of(adapter, label or str(at)), folder, adapter.base.folder)


def _default_base(opened: Sequence[Model], asking: str) -> Path:
    adapters = [m for m in opened if isinstance(m.tensors, Adapted)]
    if len(adapters) != len(opened):
        raise DataError(f"{asking} works on the differences from the model that all began from; give it as base")
    return adapters[0].stock
