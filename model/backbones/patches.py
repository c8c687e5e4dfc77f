"""Pictures and clips -> uint8 patches, in the layout and order of the Qwen-VL processors before they normalise.

A patch is (3 colours, `temporal` frames, patch, patch) flattened; rows run over windows of merge x merge patches,
one token each, windows left to right and top to bottom, then over time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.parts import image as images
from ...data.parts import video as videos
from ...data.types import DataError, Image, Video

MAX_ASPECT = 200  # beyond it the families' processors refuse a picture


@dataclass(frozen=True)
class Geometry:
    """patch: side of a patch, pixels; merge: patches that one token's side covers; temporal: frames in a patch."""

    patch: int
    merge: int
    temporal: int

    @property
    def factor(self) -> int:
        """Sides of a resized picture are multiples of this."""
        return self.patch * self.merge


def fit(width: int, height: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) to resize a picture to: multiples of `factor`, area within the limits, aspect nearly kept.

    Equal to the processors' own rule. Raises DataError where the sides differ by more than 200 times.
    """
    check_aspect(width, height)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < max(min_pixels, 1):  # without a least size, a thin picture is still one patch thick
        grow = math.sqrt(max(min_pixels, 1) / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def of_image(
    image: Image, height: int, width: int, geometry: Geometry, draft: bool, where: str, into: Tensor | None = None
) -> Tensor:
    """Patches (n, 3 * temporal * patch * patch) uint8 of one picture resized to height x width, its frame repeated.

    `draft` decodes a JPEG at the smallest DCT scale that is still at least height x width: for training only. `into`:
    where they are written, if given.
    """
    pixels = images.load(image, where, (height, width) if draft else None)
    return _patchify([_resized(pixels, height, width)], geometry, into)


def of_video(
    video: Video,
    indices: Sequence[int],
    height: int,
    width: int,
    geometry: Geometry,
    where: str,
    draft: bool = False,
    into: Tensor | None = None,
) -> Tensor:
    """Patches (n, 3 * temporal * patch * patch) uint8 of the chosen frames, each resized to height x width.

    The last frame is repeated until their number is a multiple of `temporal`. `draft` scales a container's frames while
    their colours are converted: for training only. `into`: where they are written, if given.
    """
    per = geometry.temporal
    steps = -(-len(indices) // per)
    area = height * width // geometry.patch**2
    flat = _empty(steps * area, geometry) if into is None else into
    held: list[Tensor] = []  # of the time step that is being filled
    loaded = videos.load(video, indices, where, (height, width) if draft else None)
    for i, frame in enumerate(loaded):
        held.append(_resized(frame, height, width))
        if len(held) == per or i == len(indices) - 1:
            held += held[-1:] * (per - len(held))
            _patchify(held, geometry, flat[i // per * area : (i // per + 1) * area])
            held.clear()
    return flat


def fit_qwen2_video(
    frames: int,
    width: int,
    height: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    temporal: int = 2,
    max_tokens: int = 0,
) -> tuple[int, int]:
    """(height, width) of a clip's frames by Qwen2-VL's and Qwen2.5-VL's rule: the limits are of one frame.

    With `max_tokens`, a frame has at most its share of 90% of so many tokens: the processors' cap_pixels_per_frame.
    """
    if max_tokens:
        share = int(max_tokens * factor * factor * 0.9) * temporal // frames
        max_pixels = max(min(max_pixels, share), int(min_pixels * 1.05))
    return fit(width, height, factor, min_pixels, max_pixels)


def fit_qwen3_video(
    frames: int,
    width: int,
    height: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    temporal: int = 2,
    max_tokens: int = 0,
) -> tuple[int, int]:
    """(height, width) of a clip's frames by Qwen3-VL's rule: the limits are of all frames together.

    With `max_tokens`, a frame has at most so many tokens and its share: the processor's cap_pixels_per_frame.
    """
    frames = max(frames, temporal)  # a single frame is repeated up to there
    if max_tokens:
        share = max(min(max_tokens * factor * factor, max_pixels // frames), int(min_pixels * 1.05))
        max_pixels = share * frames
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    check_aspect(width, height)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    volume = round(frames / temporal) * temporal * rows * columns
    if volume > max_pixels:
        shrink = math.sqrt((frames * height * width) / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif volume < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        rows, columns = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rows, columns


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """(H, W, 4) -> (height, width, 4) contiguous."""
    return images.resize(pixels.permute(2, 0, 1), height, width).permute(1, 2, 0).contiguous()


def _patchify(frames: Sequence[Tensor], geometry: Geometry, into: Tensor | None = None) -> Tensor:
    """Frames (H, W, 4) of one time step, `temporal` of them or a single one to repeat -> (n, 3 * temporal * patch**2).

    A pixel moves as one int32 and its colours are split off by shifts: four times faster than moving bytes.
    """
    patch, merge = geometry.patch, geometry.merge
    rows, columns = frames[0].shape[0] // geometry.factor, frames[0].shape[1] // geometry.factor
    count = rows * columns * merge * merge
    flat = _empty(count, geometry) if into is None else into
    out = flat.view(count, 3, geometry.temporal, patch * patch)
    for t, frame in enumerate(frames):
        whole = frame.view(torch.int32).view(rows, merge, patch, columns, merge, patch)
        pixels = whole.permute(0, 3, 1, 4, 2, 5).reshape(-1, patch * patch)
        for colour in range(3):
            out[:, colour, t] = pixels if colour == 0 else pixels.bitwise_right_shift_(8)  # keeps the low byte
    out[:, :, len(frames) :] = out[:, :, len(frames) - 1 : len(frames)]
    return flat


def _empty(count: int, geometry: Geometry) -> Tensor:
    return torch.empty(count, 3 * geometry.temporal * geometry.patch**2, dtype=torch.uint8)


def check_aspect(width: int, height: int) -> None:
    """Raises DataError for a sliver: resized, it would be a bomb or nothing."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(
            f"{width}x{height} pixels: one side is longer than {MAX_ASPECT} times the other; crop it, or leave it out"
        )
