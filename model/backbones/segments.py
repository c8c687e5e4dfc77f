"""One rendered prompt to token ids: what is shrunk, cut and counted. Shared by every family with a tokenizer.

A family says how a medium becomes tokens (`Media`); this file does the rest in an order that never changes: tokenise,
leave out demonstrations, the last first, until the whole fits `Limits.max_tokens` or none is left; shrink pictures and
frames; then cut the longest text. The template's own tokens, media tokens and embedding tokens are never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from ...data.types import Audio, Cost, DataError, Image, Limits, Prompted, Video
from ..template import Rendered


@dataclass(frozen=True)
class Medium:
    """One picture or clip as it will be seen: its size after the resize, and its grid of patches."""

    part: Image | Video | Audio
    height: int
    width: int
    grid: tuple[int, int, int]  # patches: time, height, width
    indices: tuple[int, ...] = ()  # of a clip's frames
    seconds: tuple[float, ...] = ()  # of those frames

    @property
    def kind(self) -> str:
        return type(self.part).__name__.lower()


class Media(Protocol):
    """How a family sees media."""

    def fit(self, part: Image | Video | Audio, limits: Limits, share: float) -> Medium:
        """The medium under `limits`, with `share` (0 to 1] of the pixels that they allow."""
        ...

    def tokens(self, medium: Medium) -> int:
        """How many media tokens stand for it."""
        ...

    def spell(self, medium: Medium) -> str:
        """What replaces the medium's one placeholder in the text: one media token per group of patches in time."""
        ...

    @property
    def marks(self) -> dict[str, str]:
        """kind -> its media token, which `_fill` repeats."""
        ...

    @property
    def placeholders(self) -> dict[str, str]:
        """kind -> what the chat template writes for one medium, and `spell` replaces: the mark, or more around it."""
        ...


@dataclass
class Segment:
    """A prompt and its answer in tokens. Media tokens are already repeated."""

    ids: list[int]
    pooled: list[bool]
    prefix: int  # tokens of the prompt
    media: list[Medium]
    spans: list[tuple[int, int, str]] = field(default_factory=list)  # (start, stop, kind) of each run of media tokens
    shrunk: bool = False
    cut: int = 0
    left: int = 0  # demonstrations that there was no room for

    def cost(self) -> Cost:
        answer = len(self.ids) - self.prefix
        towers = tuple(dict.fromkeys(m.kind for m in self.media))
        return Cost(len(self.ids), answer, towers, self.shrunk, self.cut, self.left)


def _expand(rendered: Rendered, media: Sequence[Medium], family: Media, key: str) -> tuple[str, list[tuple[int, int]]]:
    """The text with every placeholder spelled out, and (position, growth) of each, to move character ranges by."""
    out, growth, at = [], [], 0
    for medium in media:
        mark = family.placeholders[medium.kind]
        found = rendered.text.find(mark, at)
        if found < 0:
            raise DataError(
                f"key {key}: the chat template wrote no {mark} for a {medium.kind}; does it know {medium.kind}s?"
            )
        spelled = family.spell(medium)
        out += [rendered.text[at:found], spelled]
        at = found + len(mark)
        growth.append((at, len(spelled) - len(mark)))
    return "".join([*out, rendered.text[at:]]), growth


def _moved(spans: Sequence[tuple[int, int]], growth: list[tuple[int, int]]) -> list[tuple[int, int]]:
    def to(position: int) -> int:
        return position + sum(g for at, g in growth if at <= position)

    return [(to(a), to(b)) for a, b in spans]


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """For each token, the index of the span that it begins in, -1 outside all. Both are in order."""
    out, k = [], 0
    for start, stop in offsets:
        while k < len(spans) and start >= spans[k][1]:
            k += 1
        inside = k < len(spans) and spans[k][0] <= start and stop > start
        out.append(k if inside else -1)
    return out


def _cut(owner: list[int], front: Sequence[bool], excess: int) -> set[int]:
    """Token positions to drop: from the end of whichever text is longest now (from the start where `front` says so, as
    for behaviour, whose oldest events go first), until `excess` are gone or no text is left."""
    runs: dict[int, list[int]] = {}
    for position, k in enumerate(owner):
        if k >= 0:
            runs.setdefault(k, []).append(position)
    dropped: set[int] = set()
    while len(dropped) < excess:
        longest = max(runs.values(), key=len, default=[])
        if len(longest) <= 1:
            break
        second = sorted((len(r) for r in runs.values()), reverse=True)[1] if len(runs) > 1 else 1
        take = min(excess - len(dropped), max(1, len(longest) - max(second, 1)))
        k = owner[longest[0]]
        gone = slice(0, take) if k < len(front) and front[k] else slice(len(longest) - take, None)
        dropped.update(longest[gone])
        del longest[gone]
    return dropped


@dataclass
class _Draft:
    """A prompt's tokens while media are still one placeholder each."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    growth: list[tuple[int, int]]
    media: list[Medium]
    share: float = 1.0  # of the pixels that Limits allow


@dataclass(frozen=True)
class Tokens:
    """A tokenizer, a family, and the ids that the family's media tokens have."""

    tokenizer: Any  # a fast transformers tokenizer
    family: Media
    mask_instruction: bool = False
    specials: bool = False  # whether the tokenizer adds its own around the text

    @cached_property
    def media_ids(self) -> dict[int, str]:
        return {self.tokenizer.convert_tokens_to_ids(t): k for k, t in self.family.marks.items()}

    def segments(
        self, rendered: Sequence[Rendered], prompts: Sequence[Prompted], limits: Sequence[Limits]
    ) -> list[Segment]:
        """One Segment for each rendered prompt."""
        media = [self._fitted(r, p, lim) for r, p, lim in zip(rendered, prompts, limits, strict=True)]
        drafts = self._drafts(rendered, media, prompts)
        answers = [r.answer for r in rendered if r.answer]
        # Tokenised apart from the prompt, so that no answer can change a token of its prompt.
        spelled = iter(self.tokenizer(answers, add_special_tokens=False)["input_ids"] if answers else [])
        out = []
        for whole, asked, p, lim in zip(drafts, rendered, prompts, limits, strict=True):
            answer = next(spelled) if asked.answer else []
            draft, r, left = self._fewer(whole, asked, p, lim, len(answer))
            out.append(self._finish(self._shrink(draft, r, p, lim, len(answer)), answer, r, p, lim))
            out[-1].left = left
        return out

    def _fitted(self, rendered: Rendered, prompt: Prompted, limits: Limits) -> list[Medium]:
        try:
            return [self.family.fit(part, limits, 1.0) for part in rendered.media]
        except DataError as error:
            raise DataError(f"key {prompt.key}: {error}") from error

    def _drafts(
        self, rendered: Sequence[Rendered], media: Sequence[list[Medium]], prompts: Sequence[Prompted]
    ) -> list[_Draft]:
        texts = [_expand(r, m, self.family, p.key) for r, m, p in zip(rendered, media, prompts, strict=True)]
        if not texts:
            return []
        batch = self.tokenizer(
            [t for t, _ in texts],
            add_special_tokens=self.specials,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        return [
            _Draft(ids, offsets, growth, m)
            for ids, offsets, (_, growth), m in zip(
                batch["input_ids"], batch["offset_mapping"], texts, media, strict=True
            )
        ]

    def _fewer(
        self, draft: _Draft, rendered: Rendered, prompt: Prompted, limits: Limits, answer: int
    ) -> tuple[_Draft, Rendered, int]:
        """Without as many demonstrations as stand between the prompt and the limit, so that nothing of the Item's own
        is shrunk or cut for them; and how many."""
        left = 0
        while rendered.fewer is not None and self._total(draft) + answer > limits.max_tokens:
            rendered, left = rendered.fewer, left + 1
            draft = self._drafts([rendered], [self._fitted(rendered, prompt, limits)], [prompt])[0]
        return draft, rendered, left

    def _media_tokens(self, draft: _Draft) -> int:
        return sum(self.family.tokens(m) for m in draft.media)

    def _total(self, draft: _Draft) -> int:
        return sum(t not in self.media_ids for t in draft.ids) + self._media_tokens(draft)

    def _shrink(self, draft: _Draft, rendered: Rendered, prompt: Prompted, limits: Limits, answer: int) -> _Draft:
        """Fewer pixels until prompt and answer fit, or media are as small as they get (sizes move in whole patches)."""
        room, share = limits.max_tokens - answer, 1.0
        while draft.media and (total := self._total(draft)) > room and share > 1e-4:
            media = self._media_tokens(draft)
            share *= min(0.9, max(room - (total - media), 1) / media)
            smaller = [self.family.fit(part, limits, share) for part in rendered.media]
            if smaller != draft.media:
                draft = self._drafts([rendered], [smaller], [prompt])[0]
                draft.share = share
        return draft

    def _finish(
        self, draft: _Draft, answer: list[int], rendered: Rendered, prompt: Prompted, limits: Limits
    ) -> Segment:
        excess = self._total(draft) + len(answer) - limits.max_tokens
        dropped: set[int] = set()
        if excess > 0:
            owner = _inside(draft.offsets, _moved(rendered.cuttable, draft.growth))
            owner = [-1 if t in self.media_ids else k for t, k in zip(draft.ids, owner, strict=True)]
            dropped = _cut(owner, rendered.cut_front, excess)
            if len(dropped) < excess:
                raise DataError(
                    f"key {prompt.key}: {limits.max_tokens + excess} tokens, and template, media and answer alone take "
                    f"more than max_tokens={limits.max_tokens}; raise Limits.max_tokens or give less media"
                )
        masked = [-1] * len(draft.ids)
        if self.mask_instruction:
            masked = _inside(draft.offsets, _moved(rendered.instruction, draft.growth))
        segment = Segment([], [], 0, draft.media, shrunk=draft.share < 1.0, cut=len(dropped))
        self._fill(segment, draft.ids, masked, dropped)
        segment.prefix = len(segment.ids)
        segment.ids += answer
        segment.pooled += [False] * len(answer)
        return segment

    def _fill(self, segment: Segment, ids: list[int], masked: list[int], dropped: set[int]) -> None:
        """Copy the tokens over, each media token repeated for its patches."""
        marks = iter(
            [
                (m.kind, self.family.tokens(m) // count)
                for m in segment.media
                for count in [self.family.spell(m).count(self.family.marks[m.kind])]
                for _ in range(count)
            ]
        )
        for position, token in enumerate(ids):
            if position in dropped:
                continue
            kind, repeat = next(marks) if token in self.media_ids else ("", 1)
            if kind:
                segment.spans.append((len(segment.ids), len(segment.ids) + repeat, kind))
            segment.ids += [token] * repeat
            segment.pooled += [masked[position] < 0] * repeat
