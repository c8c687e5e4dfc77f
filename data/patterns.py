"""Dataset-driven pattern matching (SAIL-Embedding, arXiv:2510.12709): which fields of a row form the query, which the
target. One row can so serve several tasks: image -> text, text -> image + text, video -> audio, user -> item.

A row has the fields that it names (`Example.fields`), and `query` and `target` where it has a query and positives;
`query.image` are the pictures of a field alone, and so for every kind of part. Views of one row are never each other's
negatives: each knows what the others may ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import combinations, product
from math import isfinite
from typing import Literal, NamedTuple

from .absent import absent as absent
from .counter import bits, choose
from .types import Audio, DataError, Events, Example, Image, Item, Part, Text, Video, digest

Draw = Literal["one", "all"]

KINDS: dict[str, type] = {"text": Text, "image": Image, "audio": Audio, "video": Video, "events": Events}
NAME = re.compile(r"[a-z][a-z0-9_]*")
OWN = ("query", "target")  # fields that every row with a query and positives has; no named field is called so

_DROPPED = 6  # target fields that may be dropped: 2^6 targets are right for every view of the row
_THEN = "correct the row, or leave it out: Feed(missing='skip')"
_IDS = 1 << 16  # identities of single kinds of a mixed field that a process remembers


class Field(NamedTuple):
    """A field as a form names it: `whole` or, with a kind, its parts of that kind."""

    whole: str
    kind: str
    optional: bool

    @property
    def name(self) -> str:
        return f"{self.whole}.{self.kind}" if self.kind else self.whole


@dataclass(frozen=True)
class Pattern:
    """`form` names fields: "image -> title", "title + image? -> description". A field with "?" is used where the row
    has it. weight: its share among the patterns that a row can form, 0 for never. drop: the chance that a "?" field is
    left out of a draw. instruction, target_instruction: of the Items that it forms, None for the row's own. task: of
    the Examples, "" for the row's own. Raises ValueError for a form that is none."""

    form: str
    weight: float = 1.0
    drop: float = 0.0
    instruction: str | None = None
    target_instruction: str | None = None
    task: str = ""

    def __post_init__(self) -> None:
        query, target = self.sides
        for side, named in (("query", query), ("target", target)):
            if all(f.optional for f in named):
                raise self._wrong(f"every field of the {side} has a '?', so it could be empty; one must be without")
        both = [("query", f) for f in query] + [("target", f) for f in target]
        for (side, f), (other, g) in combinations(both, 2):
            if f.whole == g.whole and (f.kind == g.kind or not (f.kind and g.kind)):
                where = (
                    f"twice in the {side}" if side == other else "on both sides: the answer would be in the question"
                )
                raise self._wrong(f"{max(f.name, g.name, key=len)!r} is {where}")
        if not (isfinite(self.weight) and self.weight >= 0):
            raise self._wrong(f"weight={self.weight}; expected a finite number, 0 or more")
        if not 0 <= self.drop < 1:
            raise self._wrong(f"drop={self.drop}; expected a chance of 0 or more and below 1")
        if self.drop and not any(f.optional for f in (*query, *target)):
            raise self._wrong(f"drop={self.drop}, but no field may be dropped; put a '?' behind one")
        if self.drop and sum(f.optional for f in target) > _DROPPED:
            raise self._wrong(f"more than {_DROPPED} fields of the target may be dropped; take the '?' from some")

    @cached_property
    def sides(self) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
        """The fields of the query, those of the target."""
        sides = self.form.split("->")
        if len(sides) != 2:
            raise self._wrong("expected QUERY -> TARGET, as in 'image -> title'")
        for side, text in zip(("query", "target"), sides, strict=True):
            if not text.strip():
                raise self._wrong(f"nothing is in the {side}; name a field")
        query, target = (tuple(self._field(piece.strip()) for piece in text.split("+")) for text in sides)
        return query, target

    @cached_property
    def slug(self) -> str:
        """The form without spaces, as keys end: "title+image?->description"."""
        return "".join(self.form.split())

    @cached_property
    def to_target(self) -> bool:
        """Whether the target is the row's own positive, whole and alone."""
        return [f.name for f in self.sides[1]] == ["target"]

    @cached_property
    def needed(self) -> tuple[Field, ...]:
        return tuple(f for side in self.sides for f in side if not f.optional)

    def _field(self, piece: str) -> Field:
        whole, dot, kind = piece.removesuffix("?").rstrip().partition(".")
        if not NAME.fullmatch(whole) or (dot and kind not in KINDS):
            raise self._wrong(
                f"{piece!r} is no field; expected a name of a-z, 0-9 and _ ('title'), one kind of its parts "
                f"('query.image'; {', '.join(KINDS)}), either with a '?' where rows may lack it"
            )
        return Field(whole, kind, piece.endswith("?"))

    def _wrong(self, why: str) -> ValueError:
        return ValueError(f"pattern {self.form!r}: {why}")


def checked(patterns: Sequence[Pattern], source: str) -> None:
    """Raises ValueError for patterns that cannot stand together in the feed of `source`."""
    slugs = [p.slug for p in patterns]
    for pattern in patterns:
        if slugs.count(pattern.slug) > 1:
            raise ValueError(
                f"feed {source!r}: two patterns {pattern.form!r}, whose rows would have equal keys; "
                "keep one (Feed.instructions gives it several instructions)"
            )
    if patterns and not any(p.weight for p in patterns):
        raise ValueError(
            f"feed {source!r}: the weights of its {len(patterns)} patterns sum to nothing; give one above 0"
        )


def possible(example: Example, patterns: Sequence[Pattern]) -> tuple[int, ...]:
    """The patterns that the row has the fields for."""
    return tuple(i for i, pattern in enumerate(patterns) if _able(example, pattern))


def views(example: Example, patterns: Sequence[Pattern], how: Draw, seed: int, draw: int) -> tuple[int, ...]:
    """The patterns of this draw of the row: one of the possible ones by weight, or all of them. A pattern of weight 0
    is in neither. Empty where the row can form none: `lacking` says why. Pure in its arguments."""
    able = [i for i in possible(example, patterns) if patterns[i].weight > 0]
    if how == "all" or len(able) < 2:
        return tuple(able)
    left = _chance(seed, "pattern", draw, example.key) * sum(patterns[i].weight for i in able)
    for i in able:
        left -= patterns[i].weight
        if left < 0:
            return (i,)
    return (able[-1],)


def formed(
    example: Example,
    patterns: Sequence[Pattern],
    index: int,
    seed: int,
    draw: int,
    known: Sequence[str] | None = None,
) -> Example:
    """The row seen in patterns[index]: the parts of its query's fields, in their order, as the query; those of its
    target's as the one positive. known: `right(example, patterns)`, where it has been found. Pure in its arguments.

    key: the row's, "#" and the form. An Item of one field keeps that field's id; one of several is the same as any of
    the same fields in the same order. `known`: every positive of the row, its query, its fields, and whatever the
    patterns may form as a target. The row's negatives and scores speak of its positives, and stay only where `target`
    alone is the target; its answer stays where `query` is in the query, or where the row has no query of its own.
    Raises DataError naming key and fields where the row cannot form it.
    """
    pattern = patterns[index]
    able = _able(example, pattern)
    if not able:
        raise DataError(lacking(example, [pattern], "possible() tells which it can"))
    key = f"{example.key}#{pattern.slug}"
    # The positive that a feed without patterns would draw.
    place = able[choose(len(able), 1, seed, "positives", draw, example.key)[0]]

    def side(fields: tuple[Field, ...]) -> Item:
        kept = (f for f in fields if not (f.optional and _chance(seed, "drop", draw, key, f.name) < pattern.drop))
        return _joined([item for f in kept if (item := _item(example, f, place)) is not None])

    query, target = pattern.sides
    count = len(example.positives)
    asked = "query" in [f.name for f in query] or not example.query.parts
    return replace(
        example,
        key=key,
        task=pattern.task or example.task,
        query=side(query),
        positives=(side(target),),
        negatives=example.negatives if pattern.to_target else (),
        known=right(example, patterns) if known is None else tuple(known),
        instruction=example.instruction if pattern.instruction is None else pattern.instruction,
        target_instruction=(
            example.target_instruction if pattern.target_instruction is None else pattern.target_instruction
        ),
        answer=example.answer if asked else "",
        scores={name: s[place : place + 1] + s[count:] for name, s in example.scores.items()}
        if pattern.to_target
        else {},
        fields={},
    )


def lacking(example: Example, patterns: Sequence[Pattern], then: str = _THEN) -> str:
    """Why the row can form none of the patterns: key, its fields, the patterns; then, what to do."""
    items = {**example.fields, "query": example.query}
    has = [*(f"{n} ({_kinds([i])})" for n, i in sorted(items.items()) if i.parts)]
    if example.positives:
        has.append(f"target ({_kinds(example.positives)})")
    forms = ", ".join(repr(p.form) for p in patterns if p.weight or len(patterns) == 1)
    return f"{example.key}: cannot form {forms}; its fields are {', '.join(has) or 'none'}; {then}"


def _able(example: Example, pattern: Pattern) -> Sequence[int]:
    """The positives with which the row can form the pattern; (0,) where it can and asks for none."""
    needed = pattern.needed
    if any(_item(example, f, 0) is None for f in needed if f.whole != "target"):
        return ()
    mine = [f for f in needed if f.whole == "target"]
    if not mine:
        return (0,)
    return [k for k in range(len(example.positives)) if all(_item(example, f, k) is not None for f in mine)]


def _item(example: Example, field: Field, place: int) -> Item | None:
    """What the row has as this field, `target` being its positive at `place`; None where it has nothing."""
    if field.whole == "query":
        item: Item | None = example.query
    elif field.whole == "target":
        item = example.positives[place] if place < len(example.positives) else None
    else:
        item = example.fields.get(field.whole)
    if item is None or not item.parts or not field.kind:
        return item if item and item.parts else None
    parts = tuple(p for p in item.parts if isinstance(p, KINDS[field.kind]) and not blank(p))
    if len(parts) == len(item.parts):
        return item
    return Item(parts) if parts else None


def blank(part: Part) -> bool:
    return isinstance(part, Text) and not part.text.strip()


def _id(item: Item) -> str:
    """A field's own id. Some parts of it go by their content: equal pictures in rows with other texts are one thing.
    Their media are read once for that; where they are in memory, remembering them would keep them there."""
    blobs = [p.blob for p in item.parts if isinstance(p, Image | Video | Audio)]
    return item.id if item.given_id or any(b.data for b in blobs) else _read_id(item.parts)


@lru_cache(maxsize=_IDS)
def _read_id(parts: tuple[Part, ...]) -> str:
    return Item(parts).id


def _joined(items: Sequence[Item]) -> Item:
    if len(items) == 1:
        return items[0] if items[0].given_id else Item(items[0].parts, _id(items[0]))
    return Item(tuple(p for item in items for p in item.parts), digest("joined", *(_id(item) for item in items)))


def right(example: Example, patterns: Sequence[Pattern]) -> tuple[str, ...]:
    """The ids of all that is right for any view of this row, each once: up to 64 for a pattern of six droppable fields,
    so found once for all views of a row."""
    return tuple(dict.fromkeys(_right(example, patterns)))


def _right(example: Example, patterns: Sequence[Pattern]) -> Iterator[str]:
    yield from (item.id for item in example.positives)
    yield from example.known
    yield from (item.id for item in (example.query, *example.fields.values()) if item.parts)
    for pattern in patterns:
        for place in _able(example, pattern):
            there = [(f, item) for f in pattern.sides[1] if (item := _item(example, f, place)) is not None]
            ways = ((True, False) if f.optional and pattern.drop else (True,) for f, _ in there)
            for kept in product(*ways):
                yield _joined([item for (_, item), k in zip(there, kept, strict=True) if k]).id


def _chance(*key: int | str) -> float:
    """Uniform in [0, 1], named by the key."""
    return bits(*key) / 2**64


def _kinds(items: Sequence[Item]) -> str:
    found = dict.fromkeys(kind for item in items for p in item.parts for kind, of in KINDS.items() if isinstance(p, of))
    return ", ".join(found)
