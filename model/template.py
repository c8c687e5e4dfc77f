"""Prompted -> the prompt's text, through the checkpoint's own chat template.

The text is byte for byte what `apply_chat_template` gives for the same turns; besides it, a Rendered holds the
character range of every instruction and of every item text, and the order of the media.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ..data.types import Audio, DataError, Events, Image, Item, Part, Prompted, Text, Video
from .skeleton import Piece, Place, Slot, skeleton
from .turns import Medium, Range, Turn, fill, joined

FILE = "omni2vec_template.json"


@dataclass(frozen=True)
class Rendered:
    """The whole prompt, one placeholder of the checkpoint's own per medium. The vector is read at its last token."""

    text: str
    media: tuple[Medium, ...]  # in the order of their placeholders
    instruction: tuple[Range, ...]  # instructions and demonstrations: what instruction-masked pooling leaves out
    cuttable: tuple[Range, ...]  # item texts, in the order they stand: all that may be cut
    answer: str  # follows `text` directly, with its end of turn; "" if none
    cut_front: tuple[bool, ...] = ()  # one per cuttable range: cut at its start (events: the oldest go first)
    fewer: Rendered | None = None  # the same without its last demonstration: what gives way first to a limit


@dataclass(frozen=True)
class Template:
    """How a checkpoint wants its prompts. A frozen value, saved with the checkpoint; hashable, plain JSON."""

    layout: str = "omni2vec"  # whose rules these are, for errors and releases
    chat: str = ""  # the checkpoint's jinja chat template; "": raw text, no turns
    variables: tuple[tuple[str, str], ...] = ()  # special tokens that the jinja template may name (bos_token, ...)
    image: str = ""  # the checkpoint's placeholder for one picture; "": it has none
    video: str = ""
    audio: str = ""
    instruct: Literal["system", "front", "none"] = "system"  # where the instruction stands
    frame: str = "{instruction}"  # the instruction as written in front of the text
    separator: str = "\n"  # between the frame and the text
    generation: bool = True  # open the assistant's turn, so that the vector is read at its last token
    tail: str = ""  # behind everything: "<|endoftext|>", "<embedding>"
    query: str = ""  # instruction of the query side where none is given
    target: str = ""
    target_instructed: bool = True  # False: the target side always has its default (GME)
    full_stop: bool = False  # strip an instruction and end it in punctuation (Qwen3-VL-Embedding)
    empty: str = "NULL"  # text of an Item without parts
    order: tuple[str, ...] = ()  # kinds of parts in the order that this layout wants; (): as given
    joint: str = " "  # raw: between media, instruction and texts
    specials: bool = False  # raw: the tokenizer adds its own special tokens around the text
    turn_end: str = ""  # raw: behind an answer
    flat_positions: bool = False  # one counter for texts and media alike, whatever the family does (VLM2Vec-V2)
    shot: tuple[str, ...] = ("Query: ", "\nAnswer: ", "\n\n")  # around a demonstration (arXiv:2506.07438); (): refused

    def __post_init__(self) -> None:
        if self.instruct not in ("system", "front", "none"):
            raise ValueError(f"template: instruct={self.instruct!r}; expected 'system', 'front' or 'none'")
        if self.instruct == "system" and not self.chat:
            raise ValueError("template: instruct='system' needs a chat template; raw text takes 'front' or 'none'")
        if len(self.shot) not in (0, 3):
            raise ValueError(f"template: shot={self.shot!r}; expected three texts (before, between, behind) or none")

    @property
    def placeholders(self) -> tuple[tuple[str, str], ...]:
        """(kind, token) of the media that this checkpoint knows."""
        return tuple((k, t) for k, t in (("image", self.image), ("video", self.video), ("audio", self.audio)) if t)

    def instruction(self, prompted: Prompted) -> str:
        """The instruction that stands in the prompt, by this layout's rules; "" for none."""
        given = prompted.instruction
        if prompted.side == "target" and not self.target_instructed:
            given = ""
        given = given or (self.query if prompted.side == "query" else self.target)
        if self.instruct == "none":
            return ""
        if self.full_stop and (given := given.strip()) and not unicodedata.category(given[-1]).startswith("P"):
            given += "."
        return given

    def render(self, prompted: Prompted) -> Rendered:
        """Raises DataError, naming the key, for a medium without a placeholder or a text that holds one."""
        _check(self, prompted)
        turns = _turns(self, prompted)
        entries = [e for t in turns for e in t.entries]
        media = {k: iter([e.medium for e in entries if e.kind == k]) for k, _ in self.placeholders}
        try:
            pieces = self._pieces(turns, self.generation)
        except DataError as error:
            raise DataError(f"{_name(prompted)}: layout {self.layout!r}: {error}") from error
        text, spans = fill(pieces, entries)
        order = [m for p in pieces if isinstance(p, Place) and (m := next(media[p.kind])) is not None]
        if not text:
            raise DataError(f"{_name(prompted)}: nothing to embed: an empty text in the raw layout {self.layout!r}")
        cut = [(span, tag == "events") for tag, span in spans if tag in ("text", "events")]
        return Rendered(
            text=text + self.tail,
            media=tuple(order),
            instruction=tuple(span for tag, span in joined(spans, "shot") if tag in ("instruction", "shot")),
            cuttable=tuple(span for span, _ in cut),
            answer=self._answer(turns, text, prompted) if prompted.answer else "",
            cut_front=tuple(front for _, front in cut),
            fewer=self.render(replace(prompted, shots=prompted.shots[:-1])) if prompted.shots else None,
        )

    def _pieces(self, turns: list[Turn], generation: bool) -> tuple[Piece, ...]:
        if not self.chat:
            return _raw(self, turns)
        structure = tuple((t.role, tuple(e.kind for e in t.entries)) for t in turns)
        return skeleton(self.chat, self.variables, structure, generation, self.placeholders)

    def _answer(self, turns: list[Turn], prompt: str, prompted: Prompted) -> str:
        if not self.chat:
            return f"\n{prompted.answer}{self.turn_end}"
        reply = Turn("assistant")
        reply.say("fixed", prompted.answer)
        pieces = self._pieces([*turns, reply], generation=False)
        last = max(i for i, p in enumerate(pieces) if isinstance(p, Slot))
        full, _ = fill(pieces[: last + 1], [e for t in [*turns, reply] for e in t.entries])
        if not full.startswith(prompt):
            raise DataError(
                f"{_name(prompted)}: the chat template of layout {self.layout!r} writes an answered conversation "
                "differently from an open one, so no answer can follow the prompt; drop the answers, or set "
                "Template(generation=False)"
            )
        end = "".join(p for p in pieces[last + 1 :] if isinstance(p, str)).rstrip()  # the end of turn, not the newline
        return full[len(prompt) :] + end

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Template:
        known = {f.name for f in fields(Template)}
        if unknown := sorted(set(values) - known):
            raise DataError(f"template: unknown field {unknown[0]!r}; the fields are {', '.join(sorted(known))}")
        made = dict(values)
        for name in ("order", "shot"):
            if name in made:
                made[name] = tuple(made[name])
        if "variables" in made:
            made["variables"] = tuple((str(k), str(v)) for k, v in made["variables"])
        return Template(**made)

    def save(self, folder: str | Path) -> None:
        path = Path(folder) / FILE
        aside = path.with_name(path.name + ".tmp")
        aside.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(path)

    @staticmethod
    def load(folder: str | Path) -> Template:
        path = Path(folder) / FILE
        try:
            return Template.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError, DataError) as error:
            raise DataError(f"{path}: not a template: {error}") from error

    @staticmethod
    def of(processor: Any, **settings: Any) -> Template:
        """The default layout over a processor's or tokenizer's own chat template and placeholders.

        With `settings` in place of defaults. Without a chat template, raw text with the instruction in front.
        """
        tokenizer = getattr(processor, "tokenizer", processor)
        chat = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None) or ""
        if isinstance(chat, dict):
            chat = chat.get("default", "")
        found = Template(
            chat=chat,
            variables=tuple(sorted((k, v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str))),
            image=getattr(processor, "image_token", "") or "",
            video=getattr(processor, "video_token", "") or "",
            audio=getattr(processor, "audio_token", "") or "",
            instruct="system" if chat else "front",
            generation=bool(chat),
            specials=not chat,
            turn_end=str(tokenizer.eos_token or ""),
        )
        return replace(found, **settings)


def _name(prompted: Prompted) -> str:
    return prompted.key or f"an item on the {prompted.side} side"


def _items(prompted: Prompted) -> Iterable[Item]:
    return chain((item for shot in prompted.shots for item in shot), (prompted.item,))


def _texts(part: Part) -> Iterable[str]:
    match part:
        case Text(text):
            yield text
        case Events(events, source):
            yield source
            yield from (text for e in events for text in (e.action, e.text))


def _check(template: Template, prompted: Prompted) -> None:
    """No medium that the checkpoint cannot take, no text that it would read as a medium."""
    known = dict(template.placeholders)
    texts = [prompted.instruction, prompted.answer]
    for part in (part for item in _items(prompted) for part in item.parts):
        kind = type(part).__name__.lower()
        if isinstance(part, Image | Video | Audio) and kind not in known:
            raise DataError(
                f"{_name(prompted)}: holds {kind}, but layout {template.layout!r} has no {kind} placeholder "
                f"(its tokenizer knows {', '.join(known) or 'text alone'}); use a checkpoint that takes {kind}"
            )
        texts.extend(_texts(part))
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{_name(prompted)}: a text holds half of a character ({error.object[error.start]!a}), which no tokenizer "
            "takes; repair it, as with text.encode(errors='replace').decode()"
        ) from error
    for kind, token in known.items():
        if any(token in text for text in texts):
            raise DataError(
                f"{_name(prompted)}: a text holds {token!r}, which the model would read as {kind}; remove it"
            )
    if prompted.shots and not template.shot:
        raise DataError(
            f"{_name(prompted)}: layout {template.layout!r} was not made for demonstrations; "
            f"drop the {len(prompted.shots)} shots, or give Template.shot the three texts around one"
        )


def _turns(template: Template, prompted: Prompted) -> list[Turn]:
    """Who says what: [system] user, with every text tagged."""
    instruction = template.instruction(prompted)
    turns = []
    if instruction and template.instruct == "system":
        system = Turn("system")
        system.say("instruction", instruction)
        turns.append(system)
    user = Turn("user")
    for shot in prompted.shots:
        for frame, item in zip(template.shot, shot, strict=False):
            user.say("shot", frame, open=True)
            for part in _ordered(template, item):
                user.add(part, "shot", after=True)
        user.say("shot", template.shot[2], open=True)
    front = instruction if template.instruct == "front" else ""
    for part in _ordered(template, prompted.item):
        if front and isinstance(part, Text | Events):
            user.say("instruction", template.frame.replace("{instruction}", front) + template.separator, open=True)
            front = ""
        user.add(part)
    if front:  # no text to stand in front of
        user.say("instruction", template.frame.replace("{instruction}", front))
    return [*turns, user]


def _ordered(template: Template, item: Item) -> list[Part]:
    parts = list(item.parts) or [Text(template.empty)]
    if not template.order:
        return parts
    rank = {kind: i for i, kind in enumerate(template.order)}
    return sorted(parts, key=lambda p: rank.get(type(p).__name__.lower(), len(rank)))  # stable: equals stay as given


def _raw(template: Template, turns: list[Turn]) -> tuple[Piece, ...]:
    """Media, instruction and texts of the one turn, joined; an empty text leaves no joint behind."""
    tokens = dict(template.placeholders)
    pieces: list[Piece] = []
    number = 0
    for entry in turns[-1].entries:
        if entry.kind == "blank":
            continue
        if pieces:
            pieces.append(template.joint)
        if entry.medium is not None:
            pieces.append(Place(entry.kind, tokens[entry.kind]))
        else:
            pieces.append(Slot(number, lstrip=False, rstrip=False))
            number += 1
    return tuple(pieces)
