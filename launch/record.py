"""A recipe to JSON and back: what a run writes down beside its outputs.

Steps are written flat, by name; a step inside a step is `{"step": name}`. A list is a tuple; an object with "type" is
a dataclass, and any other object a mapping. Reading looks up dataclasses only: a record cannot run code.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..data.types import Step
from .graph import Recipe, frozen, is_step, listing
from .words import RecipeError, closest

Json = None | bool | int | float | str | list[Any] | dict[str, Any]
FOLDERS = ("data", "model", "eval", "train", "launch", "recipes")  # of omni2vec, from which a record may name a type
Keep = Callable[["Field[Any]"], bool]
PACKAGE = (__package__ or "omni2vec.launch").rpartition(".")[0]


def recorded(f: Field[Any]) -> bool:
    return f.init


def write(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values: the library's version, the name, every step, and which are the last ones."""
    return {
        "omni2vec": __version__,
        "recipe": recipe.name,
        "last": [s.name for s in recipe.last],
        "steps": {s.name: fields_of(s, f"step '{s.name}'", recorded) for s in recipe.steps},
    }


def _plain(value: object, what: str, keep: Keep) -> Json:
    if is_step(value):
        return {"step": value.name}  # type: ignore[attr-defined]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"type": "float", "value": repr(value)}
    if isinstance(value, Path):
        return {"type": "path", "value": value.as_posix()}
    if isinstance(value, tuple):
        return [_plain(v, f"{what}[{i}]", keep) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        plain = {k: _plain(v, f"{what}[{k!r}]", keep) for k, v in value.items()}
        if all(isinstance(k, str) for k in plain) and "type" not in plain and set(plain) != {"step"}:
            return {str(k): v for k, v in plain.items()}
        return {"type": "mapping", "items": [[_plain(k, what, keep), v] for k, v in plain.items()]}
    if is_dataclass(value) and not isinstance(value, type):
        return fields_of(value, what, keep)
    raise RecipeError(
        f"{what} is a {type(value).__name__}, which a record cannot hold. "
        "Use a number, a string, a Path, a tuple, a mapping or a frozen dataclass."
    )


def fields_of(value: Any, what: str, keep: Keep) -> dict[str, Any]:
    """A dataclass as JSON values: its type, and those of its fields that `keep` takes, at every depth."""
    kind = type(value)
    if "." in kind.__qualname__:
        raise RecipeError(
            f"{what}: {kind.__qualname__} is defined inside a function or class; move it to its file's top level."
        )
    names = [f.name for f in fields(value) if keep(f)]
    if "type" in names:
        raise RecipeError(f"{what}: {kind.__name__} has a field 'type', which a record needs for itself; rename it.")
    return {"type": f"{kind.__module__}.{kind.__name__}"} | {
        n: _plain(getattr(value, n), f"{what}, {n}", keep) for n in names
    }


def read(record: Any, file: str = "record") -> Recipe:
    """The recipe that `write` was given. Raises RecipeError on an unknown type, step or field, naming `file`."""
    if not isinstance(record, dict) or not {"recipe", "last", "steps"} <= set(record):
        raise RecipeError(f"{file}: not a record; expected the keys omni2vec, recipe, last and steps.")
    made: dict[str, Step] = {}
    for name, plain in record["steps"].items():
        step = _value(plain, made, f"{file}, step '{name}'")
        if not is_step(step) or step.name != name:
            raise RecipeError(f"{file}, step '{name}': a {type(step).__name__} that is no step of that name.")
        made[name] = step
    return Recipe(record["recipe"], tuple(_step(n, made, file) for n in record["last"]))


def _step(name: str, made: Mapping[str, Step], what: str) -> Step:
    if name not in made:
        raise RecipeError(f"{what}: no step '{name}' before it. The steps are {', '.join(made) or '(none)'}.")
    return made[name]


def _value(plain: Any, made: Mapping[str, Step], what: str) -> Any:
    if isinstance(plain, list):
        return tuple(_value(v, made, f"{what}[{i}]") for i, v in enumerate(plain))
    if not isinstance(plain, dict):
        return plain
    if set(plain) == {"step"}:
        return _step(plain["step"], made, what)
    match plain.get("type"):
        case None:
            return {k: _value(v, made, f"{what}[{k!r}]") for k, v in plain.items()}
        case "float":
            return float(plain["value"])
        case "path":
            return Path(plain["value"])
        case "mapping":
            return {_value(k, made, what): _value(v, made, what) for k, v in plain["items"]}
    kind = _kind(str(plain["type"]), what)
    given = {k: v for k, v in plain.items() if k != "type"}
    known = {f.name: f for f in fields(kind) if f.init}
    for name in given:
        if name not in known:
            raise RecipeError(
                f"{what}: {kind.__name__} has no field '{name}'.{closest(name, known)} Its fields are\n{listing(kind)}"
            )
    for name, f in known.items():
        # A field with a default may be younger than the record; the others the record must hold.
        if name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise RecipeError(f"{what}: {kind.__name__} needs the field '{name}'. Its fields are\n{listing(kind)}")
    return kind(**{k: _value(v, made, f"{what}, {k}") for k, v in given.items()})


def _kind(dotted: str, what: str) -> type:
    """The frozen dataclass of that name, from this library or from a module that is imported already."""
    module, _, name = dotted.rpartition(".")
    package, _, rest = module.partition(".")
    if package == PACKAGE and rest.split(".")[0] in FOLDERS:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise RecipeError(f"{what}: no module {module} in omni2vec {__version__} ({error}).") from None
    elif module not in sys.modules:
        raise RecipeError(
            f"{what}: type {dotted} is from a module that is not imported. "
            "Give the recipe's Python file in place of the record, or import the module first."
        )
    kind = getattr(sys.modules[module], name, None)
    if not isinstance(kind, type) or not is_dataclass(kind) or not frozen(kind):
        raise RecipeError(f"{what}: {dotted} is not a frozen dataclass; a record may hold nothing else.")
    return kind
