"""Command-line words to typed values, by annotation: `"1e-3"` under `float` is 0.001, under `int` an error.

`fits` is the other direction: whether a value that a recipe's author wrote agrees with the annotation of its field.
"""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from ..data.types import DataError


class RecipeError(DataError):
    """A recipe, or a word that changes one, is wrong. The message says where, what was expected and what to do."""


def hints(thing: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a class or function; where one cannot be resolved (a name for type checkers only), Any for all."""
    try:
        return typing.get_type_hints(thing)
    except (NameError, TypeError):
        names = [*inspect.get_annotations(thing)]
        return dict.fromkeys(names, Any)


def spell(annotation: Any) -> str:
    """An annotation as a person would write it: `int`, `str | None`, `"sum" | "mean"`, `float, ...`."""
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is Any or annotation is inspect.Parameter.empty:
        return "any"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(a) for a in args)
    if origin in (Union, types.UnionType):
        return " | ".join(spell(a) for a in args)
    if origin is tuple:
        return f"{spell(args[0])},..." if len(args) == 2 and args[1] is ... else ",".join(spell(a) for a in args)
    if origin is not None:
        return f"{getattr(origin, '__name__', origin)}[{', '.join(spell(a) for a in args)}]"
    return str(getattr(annotation, "__name__", annotation))


def closest(name: str, names: Iterable[str]) -> str:
    """` Did you mean 'steps'?` or nothing."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean '{match[0]}'?" if match else ""


def parse(word: str, annotation: Any, what: str) -> Any:
    """The value of `word` under `annotation`. Raises RecipeError naming `what`, the word and what was expected."""
    try:
        return _parse(word, annotation)
    except ValueError:
        raise RecipeError(f"{what}: got '{word}', expected {spell(annotation)}.") from None


def _parse(word: str, annotation: Any) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {str(a): a for a in args}[word] if word in {str(a) for a in args} else _refuse()
    if origin in (Union, types.UnionType):
        return _first(word, args)
    if origin is tuple:
        return _tuple(word, args)
    if annotation is type(None):
        return None if word.lower() == "none" else _refuse()
    if annotation is bool:
        return {"true": True, "false": False}[word.lower()] if word.lower() in ("true", "false") else _refuse()
    if annotation in (int, float, str, Path):
        return annotation(word)
    return _refuse()


def _refuse() -> Any:
    raise ValueError


def _first(word: str, members: tuple[Any, ...]) -> Any:
    """The first member of a union that takes the word; `str` and `Path`, which take every word, are asked last."""
    for member in sorted(members, key=lambda m: m in (str, Path)):
        try:
            return _parse(word, member)
        except ValueError:
            continue
    return _refuse()


def _tuple(word: str, members: tuple[Any, ...]) -> tuple[Any, ...]:
    pieces = [p.strip() for p in word.strip("()").split(",") if p.strip()]
    if len(members) == 2 and members[1] is ...:
        return tuple(_parse(p, members[0]) for p in pieces)
    if len(pieces) != len(members):
        return _refuse()  # type: ignore[no-any-return]
    return tuple(_parse(p, m) for p, m in zip(pieces, members, strict=True))


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value agrees with its annotation. True where the annotation says nothing that can be checked here."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return value in args
    if origin in (Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is tuple:
        return isinstance(value, tuple) and _tuple_fits(value, args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(v, args[1]) for v in value.values())
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str, type(None)):
        return isinstance(value, annotation)
    if isinstance(annotation, type) and is_dataclass(annotation):
        return isinstance(value, annotation)
    return True


def _tuple_fits(value: tuple[Any, ...], members: tuple[Any, ...]) -> bool:
    if len(members) == 2 and members[1] is ...:
        return all(fits(v, members[0]) for v in value)
    return len(value) == len(members) and all(fits(v, m) for v, m in zip(value, members, strict=True))
