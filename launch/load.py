"""A recipe's file to a Recipe: imported, given its settings, overridden and checked.

A recipe is a Python file with `def recipe(*, steps: int = 300, ...) -> Step | tuple[Step, ...]` that returns the last
steps of a graph; or the record.json of a run.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..data.addresses import redacted_text
from .graph import Recipe, Setting, check, is_step, listing
from .override import override
from .record import read
from .words import RecipeError, closest, hints, parse, spell


def load(path: Path, words: Sequence[str] = ()) -> Recipe:
    """The recipe in a Python file or a run's record.json, under `setting=value` and `step.field=value` words."""
    if not path.is_file():
        raise RecipeError(
            f"{path}: no such recipe. Give a Python file with a function `recipe`, or a run's record.json."
        )
    settings, overrides = _split(words)
    if path.suffix == ".json":
        if settings:
            raise RecipeError(
                f"{path}: a record has no settings (got '{next(iter(settings))}'); override steps: step.field=value."
            )
        recipe = read(json.loads(path.read_text()), str(path))
    else:
        recipe = _call(path, module_of(path), settings)
    recipe = override(recipe, overrides)
    for step in recipe.steps:
        check(step, f"{path}: step '{step.name}'")
    return recipe


def _split(words: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Words to settings and overrides: a dot before the `=` makes an override."""
    settings: dict[str, str] = {}
    overrides: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise RecipeError(f"'{word}': expected setting=value or step.field=value.")
        into = overrides if "." in name else settings
        if name in into:
            raise RecipeError(f"'{name}' is given twice: {redacted_text(into[name])} and {redacted_text(value)}.")
        into[name] = value
    return settings, overrides


def module_of(path: Path) -> ModuleType:
    """The recipe's file as a module; under its own name where it is the library's, so that its steps can be pickled."""
    library = Path(__file__).resolve().parent.parent / "recipes"
    if path.resolve().parent == library:
        return importlib.import_module(f"{__package__.rpartition('.')[0]}.recipes.{path.stem}")
    name = "recipe_" + re.sub(r"\W", "_", path.stem)
    loaded = sys.modules.get(name)
    if loaded is not None and Path(str(loaded.__file__)).resolve() == path.resolve():
        return loaded  # once in a process, like any import: a second copy's steps would equal none of the first's
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path}: not a Python file; a recipe ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and records look their module up here
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise RecipeError(f"{path}, line {error.lineno}: {error.msg}.") from None
    except ValueError as error:
        raise _explained(error, path, module) from error
    return module


def _call(path: Path, module: ModuleType, words: Mapping[str, str]) -> Recipe:
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise RecipeError(f"{path}: has no function `recipe`. Write `def recipe(*, steps: int = 300) -> Step: ...`.")
    settings = _settings(path, function, words)
    try:
        made = function(**{s.name: s.value for s in settings})
    except (TypeError, ValueError) as error:
        raise _explained(error, path, module) from error
    last = made if isinstance(made, tuple) else (made,)
    if not last or not all(is_step(s) for s in last):
        raise RecipeError(
            f"{path}: recipe() returned {type(made).__name__}; return the last step, or a tuple of the last steps."
        )
    return Recipe(path.stem, last, settings)


def _settings(path: Path, function: Callable[..., Any], words: Mapping[str, str]) -> tuple[Setting, ...]:
    parameters, annotations = inspect.signature(function).parameters, hints(function)
    listed = (
        "\n".join(f"  {n}: {spell(annotations.get(n, Any))} = {p.default!r}" for n, p in parameters.items())
        or "  (none)"
    )
    for name in words:
        if name not in parameters:
            raise RecipeError(f"{path}: no setting '{name}'.{closest(name, parameters)} Its settings are\n{listed}")
    settings = []
    for name, parameter in parameters.items():
        annotation = annotations.get(name, Any)
        if (
            parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY)
            or annotation is Any
        ):
            raise RecipeError(f"{path}: setting '{name}' needs a name and a type: `{name}: int = 1`.")
        if name not in words and parameter.default is parameter.empty:
            raise RecipeError(f"{path}: setting '{name}' has no default; give {name}={spell(annotation).upper()}.")
        value = parse(words[name], annotation, f"{path}: setting '{name}'") if name in words else parameter.default
        settings.append(Setting(name, annotation, value, name in words))
    return tuple(settings)


def _explained(error: TypeError | ValueError, path: Path, module: ModuleType) -> Exception:
    """A field that is unknown or missing, or a value that is refused, with the recipe's line; any other error as it
    is."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).resolve() == path.resolve()]
    if not lines:
        return error
    if isinstance(error, ValueError):
        return RecipeError(f"{path}, line {lines[-1]}: {error}")
    missing = r"(\w+)\.__init__\(\) (got an unexpected keyword argument|missing .* argument)s?:? '(\w+)'"
    found = re.match(missing, str(error))
    kind: Any = getattr(module, found[1], None) if found else None
    if found is None or not (isinstance(kind, type) and is_dataclass(kind)):
        return error
    names = [f.name for f in fields(kind) if f.init]
    if "got" in found[2]:
        wrong = f"has no field '{found[3]}'.{closest(found[3], names)}"
    else:
        wrong = f"needs the field '{found[3]}'."
    return RecipeError(f"{path}, line {lines[-1]}: {found[1]} {wrong} Its fields are\n{listing(kind)}")
