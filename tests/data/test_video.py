"""Clips: sizes, frames by index through Pillow and PyAV, the families' sampling rules, and what is refused."""

from __future__ import annotations

import os
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from omni2vec.data.parts import animation
from omni2vec.data.parts import video as videos
from omni2vec.data.types import Blob, DataError, Video

REAL = Path(os.environ.get("OMNI2VEC_REAL_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "clips"
FLAT = 12  # grey levels between one frame of a test clip and the next


def animate(kind: str, frames: int, durations: list[int], **options: object) -> bytes:
    """Frame i is grey 12 i, its left half one level darker."""
    shown = []
    for i in range(frames):
        grey = np.full((20, 30, 3), i * FLAT + 1, np.uint8)
        grey[:, :15] -= 1
        shown.append(PIL.Image.fromarray(grey))
    out = BytesIO()
    shown[0].save(out, kind, save_all=True, append_images=shown[1:], duration=durations, **options)
    return out.getvalue()


def film(
    frames: int, *, rate: int = 8, gop: int = 5, container: str = "mp4", codec: str = "libx264", **more: int
) -> bytes:
    """As `animate`, 64 x 48, by PyAV; `turn` marks it as filmed turned by so many degrees."""
    av = pytest.importorskip("av")
    out = BytesIO()
    with av.open(out, "w", format=container) as target:
        stream = target.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 64, 48, "yuv420p", gop
        if "turn" in more:
            stream.set_display_rotation(more["turn"])
        for i in range(frames):
            grey = np.full((48, 64, 3), i * FLAT % 256, np.uint8)
            grey[:16] = 255 * (i % 2)  # the top says up
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                target.mux(packet)
        for packet in stream.encode():
            target.mux(packet)
    return out.getvalue()


def frame_numbers(video: Video, indices: list[int]) -> list[int]:
    """Which frames were decoded, read off their grey."""
    right = videos.decode(video, indices, "here")[..., -10:, -10:].float().mean((1, 2, 3))
    return (right / FLAT).round().int().tolist()


ANIMATIONS = [("WEBP", {"lossless": True}), ("GIF", {}), ("PNG", {})]


@pytest.mark.parametrize(("kind", "options"), ANIMATIONS)
def test_an_animation_gives_its_frames_and_the_time_of_each(kind: str, options: dict[str, object]) -> None:
    data = animate(kind, 7, [100, 200, 50, 40, 300, 120, 90], **options)
    video = videos.probe(Blob(data), "here")
    assert (video.width, video.height, video.frames) == (30, 20, 7)
    assert animation.durations(data, "here") == pytest.approx([0.1, 0.2, 0.05, 0.04, 0.3, 0.12, 0.09])
    assert video.seconds == pytest.approx(0.9)
    assert frame_numbers(video, [0, 2, 3, 6]) == [0, 2, 3, 6]


@pytest.mark.parametrize(("kind", "options"), ANIMATIONS)
def test_an_animations_pixels_are_exact_and_a_frame_may_be_asked_for_twice(
    kind: str, options: dict[str, object]
) -> None:
    video = videos.probe(Blob(animate(kind, 5, [100] * 5, **options)), "here")
    found = videos.decode(video, [1, 4, 4], "here")
    assert found.shape == (3, 3, 20, 30) and found.dtype == torch.uint8
    assert found[:, 0, 0, 0].tolist() == [12, 48, 48] and found[:, 2, 5, 29].tolist() == [13, 49, 49]


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG"])
def test_a_still_picture_is_a_clip_of_one_frame(kind: str) -> None:
    out = BytesIO()
    PIL.Image.new("RGB", (8, 8), (0, 0, 0)).save(out, kind)
    video = videos.probe(Blob(out.getvalue()), "here")
    assert (video.frames, video.seconds) == (1, animation.BLINK)
    assert videos.sample(video, 2.0, 64) == videos.sample_ends(video, 2.0, 64) == ([0], [0.0])


@pytest.mark.parametrize(("kind", "options"), ANIMATIONS)
def test_an_animation_cut_short_names_its_place(kind: str, options: dict[str, object]) -> None:
    data = animate(kind, 7, [100] * 7, **options)
    with pytest.raises(DataError, match=r"a\.tar/3"):
        videos.probe(Blob(data[:-30]), "a.tar/3")
    with pytest.raises(DataError, match=r"a\.tar/3"):
        videos.decode(Video(Blob(data[: len(data) // 2]), 30, 20, 7, 0.7), list(range(7)), "a.tar/3")


@pytest.mark.installed
@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx"), ("matroska", "libx264"), ("avi", "mpeg4")]
)
@pytest.mark.parametrize("indices", [[0], [3], [19], [0, 1, 2], [4, 12, 13], [2, 2, 17]])
def test_frames_of_a_container_are_found_by_index(container: str, codec: str, indices: list[int]) -> None:
    video = videos.probe(Blob(film(20, container=container, codec=codec)), "here")
    assert (video.width, video.height, video.frames) == (64, 48, 20)
    assert video.seconds == pytest.approx(2.5)
    assert frame_numbers(video, indices) == indices


@pytest.mark.installed
def test_far_frames_are_sought_so_what_lies_between_them_is_never_decoded() -> None:
    av = pytest.importorskip("av")
    data = film(20, gop=5)
    broken = bytearray(data)
    with av.open(BytesIO(data)) as container:
        for packet in container.demux(video=0):
            if packet.size and 5 <= round(packet.pts * packet.time_base * 8) < 15:
                broken[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    whole, holed = (videos.probe(Blob(bytes(d)), "here") for d in (data, broken))
    assert torch.equal(videos.decode(whole, [1, 16], "here"), videos.decode(holed, [1, 16], "here"))
    with pytest.raises(DataError, match="here"):
        videos.decode(holed, [1, 7, 16], "here")


@pytest.mark.installed
@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_a_clip_filmed_turned_is_turned_back_in_size_and_pixels(turn: int) -> None:
    video = videos.probe(Blob(film(4, turn=turn)), "here")
    assert (video.width, video.height) == ((64, 48) if turn % 180 == 0 else (48, 64))
    frame = videos.decode(video, [1], "here")[0, 0].float()  # its top rows, as stored, are white
    side = {0: frame[:10], 180: frame[-10:], 90: frame[:, :10], -90: frame[:, -10:]}[turn]
    assert tuple(frame.shape) == (video.height, video.width)
    assert side.mean() > 240 and frame.mean() < 120


@pytest.mark.installed
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_container_cut_short_or_empty_names_its_place(part: float) -> None:
    data = film(40, container="matroska")
    short = Blob(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=r"^a\.tar/3"):
        videos.decode(Video(short, 64, 48, 40, 5.0), [0, 39], "a.tar/3")
    with pytest.raises(DataError, match=r"^a\.tar/3"):
        videos.probe(Blob(data[:20]), "a.tar/3")


@pytest.mark.installed
def test_a_sound_is_no_clip() -> None:
    av = pytest.importorskip("av")
    out = BytesIO()
    with av.open(out, "w", format="wav") as target:
        stream = target.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.time_base = 8000, Fraction(1, 8000)
        for packet in stream.encode(frame):
            target.mux(packet)
    with pytest.raises(DataError, match="no video stream"):
        videos.probe(Blob(out.getvalue()), "here")


def test_bytes_that_are_no_clip_are_refused() -> None:
    pytest.importorskip("av")
    with pytest.raises(DataError, match=r"^here: .*Replace"):
        videos.probe(Blob(b"not a clip" * 50), "here")


def test_a_clip_beyond_the_limits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = animate("GIF", 6, [100] * 6)
    for name, limit in (("MAX_PIXELS", 599), ("MAX_FRAMES", 5), ("MAX_SECONDS", 0.5)):
        with monkeypatch.context() as patched:
            patched.setattr(videos, name, limit)
            with pytest.raises(DataError, match=r"here: a clip of 30x20 pixels, 6 frames.*packing"):
                videos.probe(Blob(data), "here")


@pytest.mark.parametrize("indices", [[], [3, 1], [-1], [7]])
def test_frames_that_are_not_there_or_not_in_order_are_refused(indices: list[int]) -> None:
    video = videos.probe(Blob(animate("GIF", 7, [100] * 7)), "here")
    with pytest.raises(DataError, match="clip of 7"):
        videos.decode(video, indices, "here")


RATES = [6.0, 10.0, 23.976, 25.0, 29.97, 30.0, 60.0]


def clip(frames: int, rate: float) -> Video:
    return Video(Blob(), 8, 8, frames, frames / rate)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("fps", "most"), [(1.0, 16), (2.0, 64), (2.0, 768), (4.0, 9)])
def test_sampling_equals_qwen2_vls_rule(rate: float, fps: float, most: int) -> None:
    from transformers import Qwen2VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    process = Qwen2VLVideoProcessor()
    for frames in [*range(2, 70), 113, 333, 1001, 7919]:
        metadata = VideoMetadata(total_num_frames=frames, fps=rate)
        expected = process.sample_frames(metadata, fps=fps, max_frames=most).tolist()
        indices, seconds = videos.sample(clip(frames, rate), fps, most)
        assert indices == expected and indices[-1] < frames, (frames, rate)
        assert seconds == pytest.approx([i / rate for i in indices])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("fps", "most"), [(1.0, 16), (2.0, 64), (2.0, 768), (4.0, 9)])
def test_sampling_equals_qwen3_vls_rule(rate: float, fps: float, most: int) -> None:
    from transformers import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    process = Qwen3VLVideoProcessor(max_frames=most)
    for frames in [*range(1, 70), 113, 333, 1001, 7919]:
        metadata = VideoMetadata(total_num_frames=frames, fps=rate)
        expected = process.sample_frames(metadata, fps=fps).tolist()
        assert videos.sample_ends(clip(frames, rate), fps, most)[0] == expected, (frames, rate)


@pytest.mark.parametrize(
    ("frames", "most", "expected"), [(1, 64, [0]), (3, 64, [0, 1]), (30, 1, [0]), (30, 3, [0, 15])]
)
def test_short_clips_and_small_budgets_give_the_frames_there_are(frames: int, most: int, expected: list[int]) -> None:
    assert videos.sample(clip(frames, 30), 2.0, most)[0] == expected


@pytest.mark.installed
def test_real_clips_decode_as_pyav_decodes_them_whole() -> None:
    av = pytest.importorskip("av")
    parquet = pytest.importorskip("pyarrow.parquet")
    if not (REAL / "test.parquet").exists():
        pytest.skip(f"no real clips at {REAL}; set OMNI2VEC_REAL_DATA")
    for data in parquet.read_table(REAL / "test.parquet")["video"].to_pylist():
        video = videos.probe(Blob(data), "here")
        assert (video.frames, video.seconds) == (12, 3.0) and max(video.width, video.height) <= 128
        with av.open(BytesIO(data)) as container:
            whole = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        found = videos.decode(video, [0, 5, 11], "here").permute(0, 2, 3, 1).numpy()
        assert np.array_equal(found, np.stack([whole[i] for i in (0, 5, 11)]))
