"""A recipe as a graph of steps: which steps a value holds, their order, and checks of names and fields.

Each step holds, as fields, the steps that it needs. Two steps of one name must be equal: they are one step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

from ..data.types import Step
from .words import RecipeError, fits, hints, spell

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # a step's name is a folder's name, and no dot may be in it


@dataclass(frozen=True)
class Setting:
    """One argument of a recipe's function, as given or by default."""

    name: str
    annotation: Any
    value: Any
    given: bool

    def __str__(self) -> str:
        return f"{self.name}: {spell(self.annotation)} = {self.value!r}"


@dataclass(frozen=True)
class Recipe:
    """The last steps of a graph, under a name (the file's stem), with the settings that made them."""

    name: str
    last: tuple[Step, ...]
    settings: tuple[Setting, ...] = field(default=(), compare=False)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step, each behind those that it needs. Raises RecipeError on two different steps of one name."""
        return order(self.last)


def is_step(value: object) -> bool:
    return is_dataclass(value) and not isinstance(value, type) and callable(getattr(type(value), "make", None))


def frozen(kind: type) -> bool:
    return bool(kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def held(value: object) -> Iterator[Step]:
    """The steps that a value holds, in fields of dataclasses, tuples and mappings; not those inside these."""
    if is_step(value):
        yield value  # type: ignore[misc]
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from held(getattr(value, f.name))
    elif isinstance(value, tuple):
        for inner in value:
            yield from held(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from held(inner)


def needs(step: Step) -> tuple[Step, ...]:
    """The steps that `step` holds, each once, in the order of its fields."""
    found: dict[str, Step] = {}
    for f in fields(step):  # type: ignore[arg-type]
        for inner in held(getattr(step, f.name)):
            found.setdefault(inner.name, inner)
    return tuple(found.values())


def order(last: Iterable[Step]) -> tuple[Step, ...]:
    """Every step that `last` stand on, needed ones first. Depth costs no recursion; a frozen graph has no cycle."""
    seen: dict[str, Step] = {}
    ordered: dict[str, Step] = {}
    stack = [(step, False) for step in reversed(tuple(last))]
    while stack:
        step, ready = stack.pop()
        if ready:
            ordered.setdefault(step.name, step)
            continue
        first = seen.get(step.name)
        if first is not None:
            if first is not step and first != step:
                raise RecipeError(
                    f"two different steps are named '{step.name}': {_short(first)} and {_short(step)}. "
                    "Rename one: name='…'."
                )
            continue
        if not NAME.fullmatch(step.name):
            raise RecipeError(
                f"step '{step.name}' ({type(step).__name__}): a name is letters, digits, - and _; it names a folder."
            )
        seen[step.name] = step
        stack.append((step, True))
        stack.extend((inner, False) for inner in reversed(_inner(step)))
    return tuple(ordered.values())


def _inner(step: Step) -> list[Step]:
    """As `needs`, but with every copy of a name, so that `order` sees two steps that share one."""
    return [inner for f in fields(step) for inner in held(getattr(step, f.name))]  # type: ignore[arg-type]


def _short(step: Step) -> str:
    text = repr(step)
    return text if len(text) <= 160 else text[:157] + "..."


def check(value: object, what: str) -> None:
    """Raises RecipeError where a dataclass is not frozen, or a field's value disagrees with its annotation."""
    if isinstance(value, tuple):
        for i, inner in enumerate(value):
            check(inner, f"{what}[{i}]")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check(inner, f"{what}[{key!r}]")
    if not is_dataclass(value) or isinstance(value, type):
        return
    kind = type(value)
    if not frozen(kind):
        raise RecipeError(f"{what}: {kind.__name__} is not frozen; declare it with @dataclass(frozen=True).")
    annotations = hints(kind)
    for f in fields(value):
        inner, annotation = getattr(value, f.name), annotations.get(f.name, Any)
        if not fits(inner, annotation):
            raise RecipeError(f"{what}: {kind.__name__}.{f.name} is {inner!r}, expected {spell(annotation)}.")
        if not is_step(inner):
            check(inner, f"{what}, {f.name}")


def listing(kind: type) -> str:
    """A dataclass's fields with their types, one a line."""
    annotations = hints(kind)
    return "\n".join(f"  {f.name}: {spell(annotations.get(f.name, Any))}" for f in fields(kind) if f.init)
