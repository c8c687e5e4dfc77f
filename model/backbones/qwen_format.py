"""The host half of Qwen-VL: prompts to one packed row of tokens, M-RoPE positions and uint8 patches. No weights.

Positions are computed here, per segment, by the families' own rules (arXiv:2409.12191, 2502.13923, 2511.21631), since
the stock models can only compute them for padded batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...data.types import Audio, Cost, DataError, Image, Limits, Prompted, Video
from ..template import Template
from ..types import Inputs
from .patches import Geometry, fit, fit_qwen2_video, fit_qwen3_video, of_image, of_video
from .segments import Medium, Segment, Tokens

Kind = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
KINDS = ("image", "video")
GREY = 128  # of what stands in for a medium


@dataclass(frozen=True)
class QwenMedia:
    """How a Qwen-VL sees pictures and clips."""

    kind: Kind
    geometry: Geometry
    tokens_per_second: float = 1.0  # Qwen2.5-VL: how far apart in time positions frames stand
    nested: bool = False  # whether the stock processor keeps the outer vision markers around a timed clip

    @property
    def marks(self) -> dict[str, str]:
        return {"image": "<|image_pad|>", "video": "<|video_pad|>"}

    @property
    def placeholders(self) -> dict[str, str]:
        timed = self.kind == "qwen3_vl" and not self.nested
        return {**self.marks, "video": "<|vision_start|><|video_pad|><|vision_end|>"} if timed else self.marks

    @property
    def factor(self) -> int:
        return self.geometry.patch * self.geometry.merge

    def fit(self, part: Image | Video | Audio, limits: Limits, share: float) -> Medium:
        if isinstance(part, Audio):
            raise DataError(
                f"{self.kind} has no ears: an audio part needs a backbone with an audio tower or an adapter"
            )
        patch, floor = self.geometry.patch, self.factor**2

        def bounds(most: int) -> tuple[int, int]:
            """(min, max) pixels: a share is of what the picture would have, not of what it might have."""
            if share < 1:
                most = max(int(min(most, part.width * part.height) * share), floor)
            return min(max(int(limits.min_pixels * share), floor) if share < 1 else limits.min_pixels, most), most

        if isinstance(part, Image):
            h, w = fit(part.width, part.height, self.factor, *bounds(limits.max_pixels))
            return Medium(part, h, w, (1, h // patch, w // patch))
        return self._fit_video(part, limits, share, bounds)

    def _fit_video(self, part: Video, limits: Limits, share: float, bounds: Callable[[int], tuple[int, int]]) -> Medium:
        from ...data.parts.video import sample, sample_ends

        timed, patch, temporal = self.kind == "qwen3_vl", self.geometry.patch, self.geometry.temporal
        indices, seconds = (
            sample_ends(part, limits.fps, limits.max_frames)
            if timed
            else sample(part, limits.fps, limits.max_frames, temporal)
        )
        if share < 0.25:  # frames are dropped once each has a quarter of its pixels
            most = max(int(4 * share * len(indices)), temporal)
            indices, seconds = (
                sample_ends(part, limits.fps, most) if timed else sample(part, limits.fps, most, temporal)
            )
        least, most = bounds(limits.max_video_pixels)
        count = len(indices)
        if timed:  # whose limits are of all frames together
            h, w = fit_qwen3_video(count, part.width, part.height, self.factor, least * count, most * count, temporal)
        else:
            h, w = fit_qwen2_video(count, part.width, part.height, self.factor, least, most, temporal)
        grid = (-(-count // temporal), h // patch, w // patch)
        return Medium(part, h, w, grid, tuple(indices), tuple(seconds))

    def tokens(self, medium: Medium) -> int:
        t, h, w = medium.grid
        return t * h * w // self.geometry.merge**2

    def times(self, medium: Medium) -> list[float]:
        """Seconds of each temporal patch: the mean of its first and last frame."""
        n, last = self.geometry.temporal, medium.seconds[-1]
        padded = [*medium.seconds, *([last] * (-len(medium.seconds) % n))]
        return [(padded[i] + padded[i + n - 1]) / 2 for i in range(0, len(padded), n)]

    def spell(self, medium: Medium) -> str:
        mark = self.marks[medium.kind]
        if self.kind != "qwen3_vl" or medium.kind != "video":
            return mark
        return "".join(f"<{t:.1f} seconds><|vision_start|>{mark}<|vision_end|>" for t in self.times(medium))

    def interval(self, medium: Medium) -> float:
        """Temporal positions between two temporal patches of a clip, by its mean rate; in float32, as the stock model
        counts: the positions are rounded down."""
        part = medium.part
        if self.kind != "qwen2_5_vl" or not isinstance(part, Video) or not part.seconds:
            return 1.0
        rate = len(medium.indices) / part.frames * (part.frames / part.seconds)
        return float(np.float32(self.tokens_per_second) * np.float32(self.geometry.temporal / rate))

    def positions(self, segment: Segment) -> np.ndarray:
        """(3, tokens): temporal, height and width position of each token of one segment."""
        out = np.empty((3, len(segment.ids)), dtype=np.int64)
        media = iter(self._grids(segment.media))
        at = position = 0
        for start, stop, _ in segment.spans:
            out[:, at:start] = position + np.arange(start - at)
            position += start - at
            (t, h, w), interval = next(media)
            h, w = h // self.geometry.merge, w // self.geometry.merge
            grid = np.indices((t, h, w)).reshape(3, -1)
            grid[0] = (np.arange(t, dtype=np.float32) * np.float32(interval)).astype(np.int64).repeat(h * w)
            out[:, start:stop] = grid + position
            position += max(h, w)
            at = stop
        out[:, at:] = position + np.arange(len(segment.ids) - at)
        return out

    def _grids(self, media: Sequence[Medium]) -> list[tuple[tuple[int, int, int], float]]:
        out = []
        for m in media:
            t, h, w = m.grid
            apart = self.kind == "qwen3_vl" and m.kind == "video"
            out += [((1, h, w), 1.0)] * t if apart else [((t, h, w), self.interval(m))]
        return out


class QwenFormat:
    """Counts and collates for a Qwen-VL. Pickled to data workers."""

    def __init__(self, tokenizer: Any, template: Template, media: QwenMedia, mask_instruction: bool = False) -> None:
        self.template = template
        self.media = media
        self.tokens = Tokens(tokenizer, media, mask_instruction, template.specials)

    @property
    def tokenizer(self) -> Any:
        return self.tokens.tokenizer

    def segments(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Segment]:
        return self.tokens.segments([self.template.render(p) for p in prompts], prompts, limits)

    def count(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Cost]:
        return [s.cost() for s in self.segments(prompts, limits)]

    def collate(
        self, prompts: Sequence[Prompted], limits: Sequence[Limits], dummies: Sequence[str] = (), skip: bool = False
    ) -> Inputs:
        segments = self.segments(prompts, limits) + [self._dummy(kind) for kind in dummies]
        patches = self._room(segments)
        failed: list[int] = []
        media = ((i, medium) for i, segment in enumerate(segments) for medium in segment.media)
        for (i, medium), rows in zip(media, _cut(segments, patches), strict=True):
            try:
                if i < len(prompts):
                    self._decode(medium, limits[i].draft, prompts[i].key, rows)
                else:
                    rows.fill_(GREY)
            except DataError:
                if not skip:
                    raise
                failed.append(i)
                rows.fill_(GREY)
        packed = self._pack(segments, patches)
        return replace(
            packed,
            keys=tuple(p.key for p in prompts) + ("",) * len(dummies),
            groups=tuple(p.group for p in prompts) + (-1,) * len(dummies),
            dummies=len(dummies),
            failed=tuple(dict.fromkeys(failed)),
        )

    def _positions(self, segment: Segment) -> np.ndarray:
        """(3, tokens). VLM2Vec-V2 was trained with one counter for all tokens: its layout says so."""
        if self.template.flat_positions:
            return np.tile(np.arange(len(segment.ids)), (3, 1))
        return self.media.positions(segment)

    def _room(self, segments: Sequence[Segment]) -> dict[str, Tensor]:
        """kind -> where the patches of all its media go, one behind the other: decoded in place, none is held twice."""
        g, count = self.media.geometry, dict[str, int]()
        for medium in (m for s in segments for m in s.media):
            count[medium.kind] = count.get(medium.kind, 0) + math.prod(medium.grid)
        return {k: torch.empty(count[k], 3 * g.temporal * g.patch**2, dtype=torch.uint8) for k in KINDS if k in count}

    def _decode(self, medium: Medium, draft: bool, key: str, into: Tensor) -> None:
        size, geometry, where = (medium.height, medium.width), self.media.geometry, f"key {key}"
        if isinstance(medium.part, Image):
            of_image(medium.part, *size, geometry, draft, where, into)
        else:
            assert isinstance(medium.part, Video)
            of_video(medium.part, medium.indices, *size, geometry, where, draft, into)

    def _dummy(self, kind: str) -> Segment:
        """The smallest segment with a medium of this kind, one media token; of "text", one token."""
        from ...data.types import Blob

        if kind == "text":
            return Segment([0], [True], 1, [])
        m = self.media.geometry.merge
        side = self.media.factor
        part = Image(Blob(), side, side) if kind == "image" else Video(Blob(), side, side, 1, 0.0)
        mark = self.tokenizer.convert_tokens_to_ids(self.media.marks[kind])
        return Segment([mark], [True], 1, [Medium(part, side, side, (1, m, m), (0,), (0.0,))], [(0, 1, kind)])

    def _pack(self, segments: list[Segment], patches: dict[str, Tensor]) -> Inputs:
        lengths = tuple(len(s.ids) for s in segments)
        labels = torch.full((sum(lengths),), -100, dtype=torch.int64)
        media: dict[str, Tensor] = {}
        rows: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        start = 0
        for s in segments:
            if len(s.ids) > s.prefix:
                labels[start + s.prefix - 1 : start + len(s.ids) - 1] = torch.tensor(s.ids[s.prefix :])
            for a, b, kind in s.spans:
                rows[kind].append(np.arange(start + a, start + b))
            start += len(s.ids)
        for kind, found in patches.items():
            grids = [m.grid for s in segments for m in s.media if m.kind == kind]
            media[f"{kind}_patches"] = found
            media[f"{kind}_grid"] = torch.tensor(grids, dtype=torch.int64)
            media[f"{kind}_rows"] = torch.from_numpy(np.concatenate(rows[kind]))
        return Inputs(
            ids=torch.tensor([t for s in segments for t in s.ids], dtype=torch.int64),
            lengths=lengths,
            prefix=tuple(s.prefix for s in segments),
            positions=torch.from_numpy(np.concatenate([self._positions(s) for s in segments], axis=1)),
            pooled=torch.tensor([p for s in segments for p in s.pooled], dtype=torch.bool),
            labels=labels,
            media=media,
        )


def _cut(segments: Sequence[Segment], patches: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The rows of each medium, in the order of the segments."""
    at = dict.fromkeys(patches, 0)
    for medium in (m for s in segments for m in s.media):
        start, at[medium.kind] = at[medium.kind], at[medium.kind] + math.prod(medium.grid)
        yield patches[medium.kind][start : at[medium.kind]]
