"""Clips: encoded bytes -> sizes, frame indices by the families' own rules, the pixels of the chosen frames.

Animated GIF, WebP and PNG are read by Pillow, every other container by PyAV (the extra "video"). Frame i is the i-th in
the order shown, found by its time stamp: a container is walked packet by packet, which decodes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from math import fsum
from typing import TYPE_CHECKING, Any

from ..types import Blob, DataError, Video
from . import animation
from . import image as images

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 8192 * 4320  # of one frame: 8K
MAX_FRAMES = 500_000
MAX_SECONDS = 4 * 3600.0


def probe(blob: Blob, where: str) -> Video:
    """Size as displayed, frames and seconds. Raises DataError if it is no clip, broken, or beyond the limits."""
    data = blob.read()
    if animation.animated(data):
        width, height = images.open_picture(data, where).size
        shown = animation.durations(data, where)
        frames, seconds = len(shown), fsum(shown)
    else:
        width, height, frames, seconds = _probe_container(data, where)
    if width * height > MAX_PIXELS or frames > MAX_FRAMES or seconds > MAX_SECONDS:
        raise DataError(
            f"{where}: a clip of {width}x{height} pixels, {frames:,} frames, {seconds:,.0f} s; limits {MAX_PIXELS:,} "
            f"pixels a frame, {MAX_FRAMES:,} frames, {MAX_SECONDS:,.0f} s: shrink or cut it before packing"
        )
    return Video(blob, width, height, frames, seconds)


def sample(
    video: Video, fps: float, max_frames: int, multiple: int = 2, min_frames: int = 4
) -> tuple[list[int], list[float]]:
    """Frame indices, and their seconds, by the rule of Qwen2-VL and Qwen2.5-VL: even steps from the first frame.

    `fps` frames a second, at least `min_frames`, at most `max_frames` and the clip's own, rounded down to a multiple of
    `multiple`. A clip too short for that (their own processor fails on it) gives the frames it has.
    """
    import torch

    most = min(max_frames, video.frames) // multiple * multiple
    count = int(min(max(video.seconds * fps, min_frames), most) // multiple * multiple)
    if count < multiple:
        return _timed(video, list(range(max(1, min(multiple, max_frames, video.frames)))))
    # The rule adds up in float32: so does this, by the same call.
    return _timed(video, torch.arange(0, video.frames, video.frames / count).int().tolist())


def sample_ends(video: Video, fps: float, max_frames: int, min_frames: int = 4) -> tuple[list[int], list[float]]:
    """Frame indices, and their seconds, by the rule of Qwen3-VL: evenly from the first to the last, any number."""
    import numpy as np

    count = max(1, min(max(int(video.seconds * fps), min_frames), max_frames, video.frames))
    return _timed(video, np.linspace(0, video.frames - 1, count).round().astype(int).tolist())


def decode(video: Video, indices: Sequence[int], where: str) -> Tensor:
    """The chosen frames, (F, 3, H, W) uint8, upright, RGB. `indices` may repeat but must not fall. Raises DataError."""
    import torch

    return torch.stack([frame[..., :3].permute(2, 0, 1) for frame in load(video, indices, where)])


def load(video: Video, indices: Sequence[int], where: str) -> Iterator[Tensor]:
    """One chosen frame after the other, (H, W, 4) uint8 as `image.load` gives it: one at a time is at full size."""
    wanted = list(indices)
    if not wanted or wanted != sorted(wanted) or wanted[0] < 0 or wanted[-1] >= video.frames:
        raise DataError(f"{where}: frames {wanted} asked of a clip of {video.frames}; ask in rising order, from 0")
    data = video.blob.read()
    read = _animation_frames if animation.animated(data) else _container_frames
    frames = read(data, sorted(set(wanted)), where)
    frame, held = next(frames), wanted[0]
    for index in wanted:
        if index != held:
            frame, held = next(frames), index
        yield frame


def _timed(video: Video, indices: list[int]) -> tuple[list[int], list[float]]:
    # Divided by the rate, as transformers does: Qwen3-VL's prompt has these times, rounded to a tenth.
    rate = video.frames / video.seconds if video.seconds else float("inf")
    return indices, [i / rate for i in indices]


def _animation_frames(data: bytes, wanted: list[int], where: str) -> Iterator[Tensor]:
    picture = images.open_picture(data, where)
    for index in wanted:
        with images.reading(f"{where}, frame {index}"):
            picture.seek(index)
            frame = images.spare(images.rgb(picture.copy()))
        yield frame


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first video stream, one decoding thread: the workers are the parallelism."""
    try:
        import av
    except ImportError as error:
        raise DataError(f'{where}: reading this clip needs PyAV: pip install "omni2vec[video]"') from error
    try:
        with av.open(BytesIO(data)) as container:
            if not container.streams.video:
                raise DataError(f"{where}: the file holds no video stream; is it a sound?")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            yield container, stream
    except av.FFmpegError as error:
        raise DataError(f"{where}: the clip cannot be read ({error}); is it cut short? Replace or drop it") from error


def _stamps(container: Any, stream: Any, where: str) -> tuple[list[int], list[int]]:
    """Time stamps of all frames in the order shown, and those of the key frames. Reads every packet, decodes none."""
    shown, keys = [], []
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is None:
                raise DataError(f"{where}: a frame without a time stamp; re-encode the clip")
            shown.append(stamp)
            if packet.is_keyframe:
                keys.append(stamp)
            if len(shown) > MAX_FRAMES:
                break
    if not shown:
        raise DataError(f"{where}: the clip has no frames; is it cut short? Replace or drop it")
    return sorted(shown), sorted(keys)


def _probe_container(data: bytes, where: str) -> tuple[int, int, int, float]:
    with _opened(data, where) as (container, stream):
        width, height = stream.width, stream.height
        if (container.duration or 0) / 1e6 > MAX_SECONDS or width * height > MAX_PIXELS:
            return width, height, stream.frames, (container.duration or 0) / 1e6
        shown, _ = _stamps(container, stream, where)
        rate = float(stream.average_rate or 0)
        span = float((shown[-1] - shown[0]) * stream.time_base)
        # The rate is what transformers counts by; without one, the last frame stands as long as the mean of the others.
        seconds = len(shown) / rate if rate else span * len(shown) / max(len(shown) - 1, 1)
        container.seek(0, stream=stream)
        turned = next(container.decode(stream)).rotation % 180 == 90
    return *((height, width) if turned else (width, height)), len(shown), seconds or animation.BLINK


def _container_frames(data: bytes, wanted: list[int], where: str) -> Iterator[Tensor]:
    """Seeks where a key frame lies between here and the next wanted frame, else decodes on."""
    with _opened(data, where) as (container, stream):
        shown, keys = _stamps(container, stream, where)
        if wanted[-1] >= len(shown):
            raise DataError(f"{where}: frame {wanted[-1]} of a clip of {len(shown)}; was it replaced? Pack it again")
        frames: Iterator[Any] = iter(())
        here: int | None = None
        for index in wanted:
            target = shown[index]
            start = max((k for k in keys if k <= target), default=shown[0])
            if here is None or here < start:
                container.seek(start, stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                if frame.pts is not None and frame.pts >= target:
                    break
            else:
                raise DataError(f"{where}: frame {index} cannot be decoded; is the clip cut short? Replace or drop it")
            here = frame.pts
            yield _pixels(frame)


def _pixels(frame: Any) -> Tensor:
    """PyAV's frame -> (H, W, 4) uint8, upright; colours as its own rgb24, which transformers reads too."""
    import numpy as np
    import torch

    upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    height, width, _ = upright.shape
    pixels = torch.empty(height, width, 4, dtype=torch.uint8)
    pixels[..., :3] = torch.from_numpy(np.ascontiguousarray(upright))
    return pixels
