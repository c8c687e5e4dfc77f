"""Clips: encoded bytes -> sizes (header only), frame indices by the families' own rules, the pixels of chosen frames.

Animated WebP, GIF and PNG are read by Pillow, every other container by PyAV (the extra "video"), which seeks to the key
frame before a wanted one and decodes no further than the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..types import Blob, DataError, Video
from . import image as images

if TYPE_CHECKING:
    from torch import Tensor

MAX_FRAMES = 200_000  # 55 minutes at 60 a second
MAX_SECONDS = 6 * 3600.0
BLINK = 0.1  # seconds of a frame whose file says 0, as browsers show it


def probe(blob: Blob, where: str) -> Video:
    """Size as displayed, frames and seconds. Raises DataError if it is no clip, broken, or beyond the limits."""
    data = blob.read()
    width, height, frames, seconds = _probe_animation(data, where) if _animated(data) else _probe_container(data, where)
    if width * height > images.MAX_PIXELS or frames > MAX_FRAMES or seconds > MAX_SECONDS:
        raise DataError(
            f"{where}: a clip of {width}x{height} pixels, {frames:,} frames, {seconds:,.0f} s; limits "
            f"{images.MAX_PIXELS:,} pixels, {MAX_FRAMES:,} frames, {MAX_SECONDS:,.0f} s: cut it before packing"
        )
    return Video(blob, width, height, frames, seconds)


def sample(
    video: Video, fps: float, max_frames: int, multiple: int = 2, min_frames: int = 4
) -> tuple[list[int], list[float]]:
    """Frame indices, and their seconds, by the rule of Qwen2-VL and Qwen2.5-VL: even steps from the first frame.

    Their number is a multiple of `multiple`, never above the clip's own frames; one frame is given as it is.
    """
    import torch

    total = video.frames
    most = min(max_frames, total) // multiple * multiple
    count = int(min(max(video.seconds * fps, min_frames), most) // multiple * multiple)
    if count < multiple:
        return _timed(video, list(range(min(total, multiple, max(max_frames, 1)))))
    # The rule rounds in float32: so do we, in the same call.
    return _timed(video, torch.arange(0, total, total / count).int().tolist()[:count])


def sample_ends(video: Video, fps: float, max_frames: int, min_frames: int = 4) -> tuple[list[int], list[float]]:
    """Frame indices, and their seconds, by the rule of Qwen3-VL: evenly from the first frame to the last, any number."""
    import numpy as np

    count = max(min(max(int(video.seconds * fps), min_frames), max_frames, video.frames), 1)
    return _timed(video, np.linspace(0, video.frames - 1, count).round().astype(int).tolist())


def decode(video: Video, indices: Sequence[int], where: str) -> Tensor:
    """Frames (F, 3, H, W) uint8, upright, RGB, in the order of `indices`, which must not fall."""
    import torch

    wanted = list(indices)
    if not wanted or wanted != sorted(wanted) or wanted[0] < 0 or wanted[-1] >= video.frames:
        raise DataError(
            f"{where}: frames {wanted} asked of a clip of {video.frames}; give them in rising order, from 0"
        )
    data = video.blob.read()
    frames = (
        _decode_animation(data, wanted, where) if _animated(data) else _decode_container(data, video, wanted, where)
    )
    return torch.stack([frames[i] for i in wanted])


def _timed(video: Video, indices: list[int]) -> tuple[list[int], list[float]]:
    step = video.seconds / max(video.frames, 1)
    return indices, [i * step for i in indices]


def _animated(data: bytes) -> bool:
    """GIF, WebP or PNG, by their first bytes."""
    return data[:4] in (b"GIF8", b"\x89PNG") or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _probe_animation(data: bytes, where: str) -> tuple[int, int, int, float]:
    picture: Any = images.open_picture(data, where)
    frames = getattr(picture, "n_frames", 1)
    if frames > MAX_FRAMES:
        return *picture.size, frames, 0.0
    seconds = 0.0
    try:
        for i in range(frames):
            picture.seek(i)
            seconds += (picture.info.get("duration") or 0) / 1000 or BLINK
    except images.BROKEN as error:
        raise DataError(f"{where}: the clip breaks off ({error}); replace or drop it") from error
    return *picture.size, frames, seconds


def _decode_animation(data: bytes, wanted: list[int], where: str) -> dict[int, Tensor]:
    picture = images.open_picture(data, where)
    frames = {}
    try:
        for i in sorted(set(wanted)):
            picture.seek(i)
            frames[i] = images.tensor(images.rgb(picture))
    except images.BROKEN as error:
        raise DataError(f"{where}: frame {i} cannot be decoded ({error}); replace or drop the clip") from error
    return frames


@contextmanager
def _container(data: bytes, where: str) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first video stream."""
    try:
        import av
    except ImportError as error:
        raise DataError(f'{where}: reading this clip needs PyAV: pip install "omni2vec[video]"') from error
    try:
        with av.open(BytesIO(data)) as container:
            if not container.streams.video:
                raise DataError(f"{where}: the file holds no video stream; is it a sound?")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise DataError(
            f"{where}: {len(data):,} bytes that are no clip PyAV can read ({error}); replace or drop it"
        ) from error


def _probe_container(data: bytes, where: str) -> tuple[int, int, int, float]:
    with _container(data, where) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 24)
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        frames = stream.frames or round(seconds * rate) or 1
        return stream.width, stream.height, frames, seconds or frames / rate


def _decode_container(data: bytes, video: Video, wanted: list[int], where: str) -> dict[int, Tensor]:
    import torch

    frames: dict[int, Tensor] = {}
    with _container(data, where) as (container, stream):
        for i, frame in enumerate(container.decode(stream)):
            if i in set(wanted):
                frames[i] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            if i >= wanted[-1]:
                break
    return frames
