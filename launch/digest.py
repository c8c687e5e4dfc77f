"""The digest of a step, which decides whether it is done; and where two steps differ, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any

from ..data.addresses import is_remote
from ..data.sources import Shards
from ..data.types import Source, Step, Where, digest
from .graph import held, is_step, needs
from .record import fields_of

SHARDS = f"{Shards.__module__}.{Shards.__name__}"


def _compared(f: Field[Any]) -> bool:
    return f.init and f.compare


def canonical(step: Step, where: Where, digests: Mapping[str, str]) -> dict[str, Any]:
    """What decides a step's result: its fields, the digests of the steps it needs and of what it reads from outside.

    Fields with compare=False (a number of workers, say) are left out: equal steps have equal digests. So are addresses
    of shards elsewhere: the digest of their rows counts, not where they lie or what signs them.
    """
    given = _even(fields_of(step, f"step '{step.name}'", _compared))
    kept = _placeless(given)
    read = sorted(outside(step, where))
    return {
        "fields": kept,
        "needs": {s.name: digests[s.name] for s in needs(step)},
        "outside": dict(read) if kept == given else _joined(read),
    }


def _placeless(plain: Any) -> Any:
    if isinstance(plain, dict):
        at = plain.get("at")
        far = plain.get("type") == SHARDS and isinstance(at, str) and is_remote(at)
        return {k: _placeless(v) for k, v in plain.items() if not (far and k in ("at", "folder"))}
    return [_placeless(v) for v in plain] if isinstance(plain, list) else plain


def _joined(read: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By name; sources of one name, whose addresses do not tell them apart, count together."""
    found: dict[str, list[str]] = {}
    for name, told in dict.fromkeys(read):
        found.setdefault(name, []).append(told)
    return {name: told[0] if len(told) == 1 else digest(*told) for name, told in found.items()}


def step_digest(canonical: Mapping[str, Any]) -> str:
    """32 hex digits, the same in every process and on every machine."""
    return digest(json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False))


def _even(plain: Any) -> Any:
    """1.0 as 1: a float field may be written either way."""
    if isinstance(plain, dict):
        return {k: _even(v) for k, v in plain.items()}
    if isinstance(plain, list):
        return [_even(v) for v in plain]
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def outside(step: Step, where: Where) -> Iterator[tuple[str, str]]:
    """(name, digest) of what a step reads that no step made.

    A value with a method `outside(where) -> Mapping[str, str]` says so itself (a step that starts from a model's
    folder); a Source that holds no step is opened and asked for the digest of its rows.
    """
    for f in fields(step):  # type: ignore[arg-type]
        yield from _outside(getattr(step, f.name), where)
    yield from _declared(step, where)


def _declared(value: Any, where: Where) -> Iterator[tuple[str, str]]:
    if callable(getattr(type(value), "outside", None)):
        yield from value.outside(where).items()


def _outside(value: Any, where: Where) -> Iterator[tuple[str, str]]:
    inner: list[Any]
    if is_step(value):
        return
    if is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, f.name) for f in fields(value)]
        if callable(getattr(type(value), "outside", None)):
            yield from _declared(value, where)
        elif isinstance(value, Source) and next(held(value), None) is None:
            rows = value.open(where)
            yield rows.name, rows.digest
            return
    elif isinstance(value, tuple):
        inner = list(value)
    elif isinstance(value, Mapping):
        inner = list(value.values())
    else:
        return
    for v in inner:
        yield from _outside(v, where)


def differences(old: Any, new: Any, path: str) -> list[str]:
    """One line for every leaf in which two plain values differ: `train.optimizer.lr: 0.001 -> 0.0005`."""
    before, after = dict(leaves(old, path)), dict(leaves(new, path))
    lines = []
    for key in [*before, *(k for k in after if k not in before)]:
        a, b = before.get(key, "(absent)"), after.get(key, "(absent)")
        if a != b:
            lines.append(f"{key}: {a} -> {b}")
    return lines


def leaves(plain: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, value as text) of every leaf of a plain value."""
    if isinstance(plain, dict) and set(plain) == {"type", "value"}:
        yield path, str(plain["value"])
    elif isinstance(plain, dict) and set(plain) == {"step"}:
        yield path, f"step {plain['step']}"
    elif isinstance(plain, dict) and plain:
        for key, value in plain.items():
            yield from [(path, str(value).rpartition(".")[2])] if key == "type" else leaves(value, f"{path}.{key}")
    elif isinstance(plain, list) and plain:
        for i, value in enumerate(plain):
            yield from leaves(value, f"{path}.{i}")
    else:
        yield path, json.dumps(plain, ensure_ascii=False)
