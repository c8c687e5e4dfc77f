"""`step.field=value` words applied to a recipe, strictly: in every step that holds the changed one.

The path goes on through dataclasses, mappings and tuples: `train.optimizer.lr=1e-3`, `train.sources.0.weight=2`. Where
an optional field holds None, `train.zero.stage=2` makes its value first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, get_args

from ..data.types import Step
from .graph import Recipe, is_step, listing
from .words import RecipeError, closest, hints, parse


def override(recipe: Recipe, words: Mapping[str, str]) -> Recipe:
    """The recipe with `step.field=value` words applied, in every step that holds the changed one."""
    if not words:
        return recipe
    by_step: dict[str, list[tuple[list[str], str, str]]] = {}
    names = [s.name for s in recipe.steps]
    for path, word in words.items():
        first, *rest = path.split(".")
        if first not in names:
            raise RecipeError(
                f"'{path}={word}': no step '{first}'.{closest(first, names)} The steps are {', '.join(names)}."
            )
        by_step.setdefault(first, []).append((rest, word, path))
    made: dict[str, Step] = {}
    for step in recipe.steps:
        new: Any = _swap(step, made, top=True)
        for rest, word, path in by_step.get(step.name, []):
            new = _set(new, rest, word, path)
        if new.name != step.name:
            raise RecipeError(
                f"a step's name cannot be overridden ('{step.name}'): its folder hangs on it. Rename it in the recipe."
            )
        made[step.name] = new
    return replace(recipe, last=tuple(made[s.name] for s in recipe.last))


def _swap(value: Any, made: Mapping[str, Step], top: bool = False) -> Any:
    """`value` with the steps that it holds replaced by those of the same name in `made`."""
    if is_step(value) and not top:
        return made[value.name]
    if is_dataclass(value) and not isinstance(value, type):
        old = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        new = {name: _swap(inner, made) for name, inner in old.items()}
        return value if all(new[n] is old[n] for n in old) else replace(value, **new)
    if isinstance(value, tuple):
        swapped = tuple(_swap(inner, made) for inner in value)
        return value if all(a is b for a, b in zip(swapped, value, strict=True)) else swapped
    if isinstance(value, Mapping):
        mapped = {k: _swap(inner, made) for k, inner in value.items()}
        return value if all(mapped[k] is value[k] for k in mapped) else mapped
    return value


def _absent(annotation: Any) -> type | None:
    """The dataclass that an optional field may hold, where its defaults are enough: `train.zero.stage=2` makes one."""
    found = [k for k in get_args(annotation) if is_dataclass(k) and isinstance(k, type) and not hasattr(k, "make")]
    whole = found and all(
        f.default is not MISSING or f.default_factory is not MISSING for f in fields(found[0]) if f.init
    )
    return found[0] if len(found) == 1 and whole else None


def _no_field(value: Any, name: str, names: list[str], path: str) -> str:
    kind = type(value).__name__
    if not names:
        holder = path.split(".")[-2] if path.endswith(f".{name}") else "it"
        return f"{kind} has no fields, so no '{name}'; where another kind has, write {holder}=... of it in the recipe."
    return f"{kind} has no field '{name}'.{closest(name, names)} Its fields are\n{listing(type(value))}"


def _set(value: Any, rest: list[str], word: str, path: str, annotation: Any = Any) -> Any:
    """`value` with the thing at `rest` (fields, mapping keys, tuple indices) replaced by the parsed word."""
    if not rest:
        return parse(word, type(value) if annotation is Any else annotation, f"'{path}={word}'")
    first, *deeper = rest
    if value is None and (kind := _absent(annotation)) is not None:
        value = kind()
    if is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in fields(value) if f.init]
        if first not in names:
            raise RecipeError(f"'{path}={word}': {_no_field(value, first, names, path)}")
        inner = getattr(value, first)
        if deeper and is_step(inner):
            raise RecipeError(
                f"'{path}={word}': '{first}' is the step '{inner.name}'; write {inner.name}.{'.'.join(deeper)}={word}."
            )
        new = _set(inner, deeper, word, path, hints(type(value)).get(first, Any))
        try:
            return replace(value, **{first: new})
        except RecipeError:
            raise
        except ValueError as error:  # the class refuses the value
            raise RecipeError(f"'{path}={word}': {error}") from error
    if isinstance(value, Mapping):
        if first not in value:
            raise RecipeError(
                f"'{path}={word}': no key '{first}'.{closest(first, value)} The keys are {', '.join(map(str, value))}."
            )
        return {k: _set(v, deeper, word, path) if k == first else v for k, v in value.items()}
    if isinstance(value, tuple):
        if not first.isdecimal() or int(first) >= len(value):
            raise RecipeError(f"'{path}={word}': expected a place from 0 to {len(value) - 1}, got '{first}'.")
        return tuple(_set(v, deeper, word, path) if i == int(first) else v for i, v in enumerate(value))
    raise RecipeError(f"'{path}={word}': {path.rpartition('.')[0]} is {value!r}, which has no fields.")
