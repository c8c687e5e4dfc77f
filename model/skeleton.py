"""A jinja chat template, rendered once per structure of a conversation: literals, slots for texts, places for media.

A template may trim a text or want plain strings instead of lists of parts; both are found out by probing it, and the
result is held against the template's own rendering before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

from ..data.types import DataError

# Each turn: its role, and the kind of each entry of its content: "text", "blank" (an empty text) or a medium's name.
Structure = tuple[tuple[str, tuple[str, ...]], ...]
_SENTINEL = re.compile("(\t?)\ue000(\\d+)\ue001(\t?)")  # private-use characters: no chat template writes them


@dataclass(frozen=True, slots=True)
class Slot:
    """Where text `index` goes. Some templates strip what they are given, at either end."""

    index: int
    lstrip: bool
    rstrip: bool

    def fill(self, text: str) -> str:
        text = text.lstrip() if self.lstrip else text
        return text.rstrip() if self.rstrip else text


@dataclass(frozen=True, slots=True)
class Place:
    """A medium's placeholder, as the checkpoint writes it."""

    kind: str
    token: str


Piece = str | Slot | Place


@lru_cache(maxsize=4096)
def skeleton(
    chat: str,
    variables: tuple[tuple[str, str], ...],
    structure: Structure,
    generation: bool,
    placeholders: tuple[tuple[str, str], ...],
) -> tuple[Piece, ...]:
    """The pieces of the rendered conversation, in order.

    placeholders: (kind, token) of the media that the checkpoint knows. Raises DataError where the chat template fails
    on this structure, or writes another number of slots or places than the structure has.
    """
    texts = sum(k == "text" for _, kinds in structure for k in kinds)
    wanted = {kind: sum(k == kind for _, kinds in structure for k in kinds) for kind, _ in placeholders}
    faults = []
    for flat in (False, True):
        if flat and any(wanted.values()):
            continue  # plain strings have no room for media
        try:
            text = _apply(chat, variables, structure, generation, [f"\t\ue000{i}\ue001\t" for i in range(texts)], flat)
        except Exception as error:  # whatever the checkpoint's template raises
            faults.append(f"{type(error).__name__}: {error}")
            continue
        pieces = tuple(_split(text, placeholders))
        fault = _fault(pieces, texts, wanted) or ("it prints the list of parts" if "'type': 'text'" in text else "")
        if not fault:
            probes = [f"Probe {i}." for i in range(texts)]
            if write(pieces, probes) == _apply(chat, variables, structure, generation, probes, flat):
                return pieces
            faults = ["it changes texts in a way that depends on them"]
            break
        faults.append(fault)
    shown = ", ".join(f"{role}: {'+'.join(kinds) or 'nothing'}" for role, kinds in structure)
    raise DataError(f"the chat template cannot render ({shown}): {'; '.join(faults)}. Use another layout or template.")


def write(pieces: Sequence[Piece], texts: Sequence[str]) -> str:
    """The conversation with its slots filled."""
    return "".join(
        p if isinstance(p, str) else p.token if isinstance(p, Place) else p.fill(texts[p.index]) for p in pieces
    )


def _apply(
    chat: str,
    variables: tuple[tuple[str, str], ...],
    structure: Structure,
    generation: bool,
    texts: Sequence[str],
    flat: bool,
) -> str:
    # The very function behind every apply_chat_template, so that the sandbox, filters and globals are the same.
    from transformers.utils.chat_template_utils import render_jinja_template

    number = count()
    messages: list[dict[str, Any]] = []
    for role, kinds in structure:
        parts = [
            {"type": "text", "text": texts[next(number)] if kind == "text" else ""}
            if kind in ("text", "blank")
            else {"type": kind, kind: ""}
            for kind in kinds
        ]
        messages.append({"role": role, "content": "".join(p["text"] for p in parts) if flat else parts})
    rendered, _ = render_jinja_template(
        [messages], chat_template=chat, add_generation_prompt=generation, **dict(variables)
    )
    return str(rendered[0])


def _split(text: str, placeholders: tuple[tuple[str, str], ...]) -> Iterator[Piece]:
    tokens = {token: kind for kind, token in placeholders}
    # Longest first: one placeholder may begin another.
    either = re.compile("|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True)) or "(?!)")
    end = 0
    for match in [*_SENTINEL.finditer(text), None]:
        literal = text[end : match.start() if match else len(text)]
        start = 0
        for place in either.finditer(literal):
            if place.start() > start:
                yield literal[start : place.start()]
            yield Place(tokens[place.group()], place.group())
            start = place.end()
        if literal[start:]:
            yield literal[start:]
        if match:
            yield Slot(int(match[2]), lstrip=not match[1], rstrip=not match[3])
            end = match.end()


def _fault(pieces: Sequence[Piece], texts: int, wanted: dict[str, int]) -> str:
    slots = [p.index for p in pieces if isinstance(p, Slot)]
    if sorted(slots) != list(range(texts)):
        return f"it wrote {len(slots)} of {texts} texts"
    for kind, number in wanted.items():
        found = sum(isinstance(p, Place) and p.kind == kind for p in pieces)
        if found != number:
            return f"it wrote {found} placeholders for {number} of {kind}"
    return ""
