"""Clips: encoded bytes -> sizes, frame indices by the families' own rules, the pixels of the chosen frames.

Animated GIF, WebP and PNG are read by Pillow, every other container by PyAV (the extra "video"). Frame i is the i-th in
the order shown, found by its time stamp: a container is walked packet by packet, which decodes nothing. Held at a time
are one packet, one frame at full size and what the codec looks back on, however long the clip is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import fsum
from typing import TYPE_CHECKING, Any

from ..types import Blob, DataError, Video
from . import animation, window
from . import image as images

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 8192 * 4320  # of one frame: 8K
MAX_FRAMES = 500_000
MAX_SECONDS = 4 * 3600.0
MAX_ANIMATED = 1 << 34  # pixels of all frames of an animation: without key frames, its last frame costs them all
NEAR = 4  # frames: a key frame no farther ahead is reached by decoding on, which costs less than a seek


def probe(blob: Blob, where: str) -> Video:
    """Size as displayed, frames and seconds. Raises DataError if it is no clip, broken, or beyond the limits."""
    animated = _animated(blob)
    width, height, frames, seconds = (_probe_animation if animated else _probe_container)(blob, where)
    if width * height > MAX_PIXELS or frames > MAX_FRAMES or seconds > MAX_SECONDS:
        raise DataError(
            f"{where}: a clip of {width}x{height} pixels, {frames:,} frames, {seconds:,.0f} s; limits {MAX_PIXELS:,} "
            f"pixels a frame, {MAX_FRAMES:,} frames, {MAX_SECONDS:,.0f} s: shrink or cut it before packing"
        )
    if animated and width * height * frames > MAX_ANIMATED:
        raise DataError(
            f"{where}: an animation of {width}x{height} pixels and {frames:,} frames; limit {MAX_ANIMATED:,} pixels of "
            "all frames, since it has no key frames: make it a video (mp4, webm) or shrink it before packing"
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


def load(
    video: Video, indices: Sequence[int], where: str, draft_for: tuple[int, int] | None = None
) -> Iterator[Tensor]:
    """One chosen frame after the other, (H, W, 4) uint8 as `image.load` gives it: one at a time is at full size.

    With `draft_for` (height, width), a container's frames come at that size, scaled while their colours are converted:
    within 1.5 grey levels of the full way in the mean, and half its time.
    """
    wanted = list(indices)
    if not wanted or wanted != sorted(wanted) or wanted[0] < 0 or wanted[-1] >= video.frames:
        raise DataError(f"{where}: frames {wanted} asked of a clip of {video.frames}; ask in rising order, from 0")
    chosen = sorted(set(wanted))
    if _animated(video.blob):
        frames = _animation_frames(video.blob, chosen, where)
    else:
        frames = _container_frames(video.blob, chosen, where, draft_for)
    frame, held = next(frames), wanted[0]
    for index in wanted:
        if index != held:
            frame, held = next(frames), index
        yield frame


def _timed(video: Video, indices: list[int]) -> tuple[list[int], list[float]]:
    # Divided by the rate, as transformers does: Qwen3-VL's prompt has these times, rounded to a tenth.
    rate = video.frames / video.seconds if video.seconds else float("inf")
    return indices, [i / rate for i in indices]


def _animated(blob: Blob) -> bool:
    with window.opened(blob) as file:
        return animation.animated(file.read(16))


def _probe_animation(blob: Blob, where: str) -> tuple[int, int, int, float]:
    data = blob.read()
    width, height = images.open_picture(data, where).size
    shown = animation.durations(data, where, MAX_FRAMES + 1)
    return width, height, len(shown), fsum(shown)


def _animation_frames(blob: Blob, wanted: list[int], where: str) -> Iterator[Tensor]:
    picture = images.open_picture(blob.read(), where)
    for index in wanted:
        with images.reading(f"{where}, frame {index}"):
            picture.seek(index)
            frame = images.spare(images.rgb(picture.copy()))
        yield frame


@contextmanager
def _opened(blob: Blob, where: str) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first video stream, one decoding thread: the workers are the parallelism."""
    try:
        import av
    except ImportError as error:
        raise DataError(f'{where}: reading this clip needs PyAV: pip install "omni2vec[video]"') from error
    try:
        with window.opened(blob) as file, av.open(file, metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataError(f"{where}: the file holds no video stream; is it a sound?")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DataError(
                    f"{where}: no decoder for the codec of the clip, or it is damaged; re-encode or drop it"
                )
            stream.thread_type = "NONE"
            # The codec's own header may claim another size than the container's, and changes it as it likes.
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
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


def _probe_container(blob: Blob, where: str) -> tuple[int, int, int, float]:
    with _opened(blob, where) as (container, stream):
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


def _container_frames(blob: Blob, wanted: list[int], where: str, draft_for: tuple[int, int] | None) -> Iterator[Tensor]:
    """Seeks where a key frame lies between here and the next wanted frame, and not near; else decodes on."""
    with _opened(blob, where) as (container, stream):
        shown, keys = _stamps(container, stream, where)
        if wanted[-1] >= len(shown):
            raise DataError(f"{where}: frame {wanted[-1]} of a clip of {len(shown)}; was it replaced? Pack it again")
        frames: Iterator[Any] = iter(())
        here: int | None = None
        for index in wanted:
            target = shown[index]
            before = bisect_right(keys, target)
            start = keys[before - 1] if before else shown[0]
            if here is None or (here < start and bisect_left(shown, start) - bisect_left(shown, here) > NEAR):
                container.seek(start, stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                if frame.pts is not None and frame.pts >= target:
                    break
            else:
                raise DataError(f"{where}: frame {index} cannot be decoded; is the clip cut short? Replace or drop it")
            here = frame.pts
            yield _pixels(frame, draft_for)


def _pixels(frame: Any, draft_for: tuple[int, int] | None) -> Tensor:
    """PyAV's frame -> (H, W, 4) uint8, upright; colours as its own rgb24, which transformers reads too."""
    import numpy as np
    import torch

    turns = frame.rotation // 90
    if draft_for is not None:
        height, width = draft_for[::-1] if turns % 2 else draft_for
        frame = frame.reformat(width, height, "rgba", interpolation="BICUBIC")
    upright = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgba"), turns))
    return torch.from_numpy(upright)
