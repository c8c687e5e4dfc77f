"""Hostile and odd media: what is refused, where, and that what is read stays within its bounds."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from omni2vec.data.parts import audio, probe, window
from omni2vec.data.parts import image as images
from omni2vec.data.parts import video as videos
from omni2vec.data.types import Audio, Blob, DataError, Image, Item, Limits, Prompted, Video
from omni2vec.model.backbones import patches
from omni2vec.model.backbones.tiny import Tiny, build

from .samples import gif, png, wav

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
GEOMETRY = patches.Geometry(patch=14, merge=2, temporal=2)


@pytest.fixture(scope="module")
def formats() -> dict[str, Any]:
    """Formats of tiny models: what counts and collates in the workers."""
    sizes = {"width": 32, "heads": 4, "layers": 1, "vision": 32, "depth": 3}
    return {kind: build(Tiny(texts=(), kind=kind, **sizes), ["a word"] * 9).format for kind in KINDS}


def film(frames: int, width: int, height: int, *, gop: int = 25, noise: bool = False, rate: int = 25) -> bytes:
    """Frame i is grey 3 i (modulo 200) with a ramp over it, or noise."""
    av = pytest.importorskip("av")
    out, rng = BytesIO(), np.random.default_rng(0)
    ramp = np.linspace(0, 40, width).astype(np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    with av.open(out, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = width, height, "yuv420p", gop
        for i in range(frames):
            grey = ramp + np.uint8(3 * i % 200)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8) if noise else grey
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                target.mux(packet)
        for packet in stream.encode():
            target.mux(packet)
    return out.getvalue()


def jpeg(picture: PIL.Image.Image, **options: object) -> bytes:
    out = BytesIO()
    picture.save(out, "JPEG", **options)
    return out.getvalue()


def prompt(part: Image | Video | Audio) -> Prompted:
    return Prompted(Item((part,)), key="shop/000001/7")


# Slivers


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (3, 601)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sliver_is_refused_when_it_is_counted_and_named(kind: str, size: tuple[int, int], formats: Any) -> None:
    picture = probe("image", Blob(png(*size)), "here")
    with pytest.raises(DataError, match=r"key shop/000001/7: \d+x\d+ pixels: one side is longer than 200 times"):
        formats[kind].count([prompt(picture)], [Limits()])
    clip = probe("video", Blob(gif(*size, 2)), "here")
    with pytest.raises(DataError, match=r"key shop/000001/7: .*200 times"):
        formats[kind].count([prompt(clip)], [Limits()])


@pytest.mark.parametrize("least", [0, 4 * 28 * 28])
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 600), (5000, 26), (28, 28)])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_counted_can_be_collated(kind: str, size: tuple[int, int], least: int, formats: Any) -> None:
    asked = [prompt(probe("image", Blob(png(*size)), "here")), prompt(probe("video", Blob(gif(*size, 3)), "here"))]
    limits = [Limits(max_pixels=28 * 28 * 40, min_pixels=least, max_video_pixels=28 * 28 * 20)] * 2
    counted = formats[kind].count(asked, limits)
    inputs = formats[kind].collate(asked, limits)
    assert inputs.lengths == tuple(c.tokens for c in counted)
    assert inputs.media["image_patches"].shape[0] == inputs.media["image_grid"].prod(1).sum()


def test_open_clip_refuses_a_sliver_that_its_transform_would_blow_up() -> None:
    from omni2vec.model.backbones.clip import _frames

    with pytest.raises(DataError, match="input 3: 1x10000 pixels"):
        list(_frames(Item((probe("image", Blob(png(1, 10_000)), "x"),)), "input 3"))


# Pictures


def test_a_png_whose_pixels_unpack_to_more_than_it_says_costs_what_it_says() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(200_000_000))) + chunk(b"IEND", b"")
    tracemalloc.start()
    pixels = images.decode(images.probe(Blob(bomb), "here"), "here")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (3, 8, 8) and peak < 5_000_000


def test_a_png_whose_text_is_a_bomb_is_refused() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    data = png(4, 4)
    with pytest.raises(DataError, match=r"^here: .*(text|large)"):
        images.probe(Blob(data[:33] + text + data[33:]), "here")


def written(kind: str, mode: str) -> bytes:
    """A picture of this format and mode; empty where there is no such thing."""
    out = BytesIO()
    try:
        PIL.Image.new(mode, (60, 40), 1).save(out, kind)
    except (OSError, ValueError, KeyError):
        return b""
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000"])
def test_every_mode_of_every_format_is_seen(kind: str, formats: Any) -> None:
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
    files = {mode: data for mode in modes if (data := written(kind, mode))}
    assert len(files) >= 3
    for mode, data in files.items():
        inputs = formats["qwen2_vl"].collate([prompt(probe("image", Blob(data), mode))], [Limits()])
        assert inputs.media["image_patches"].dtype == torch.uint8, mode
        assert len(inputs.media["image_patches"].unique()) <= 4 * 3, mode  # it is of one colour


@pytest.mark.parametrize("draft", [False, True])
def test_a_truncated_jpeg_names_its_key_or_stands_in_as_grey(draft: bool, formats: Any) -> None:
    data = jpeg(PIL.Image.effect_noise((640, 480), 60))
    asked = [prompt(probe("image", Blob(data[: len(data) // 2]), "here"))]
    with pytest.raises(DataError, match="key shop/000001/7: the picture cannot be read"):
        formats["qwen2_vl"].collate(asked, [Limits(draft=draft)])
    skipped = formats["qwen2_vl"].collate(asked, [Limits(draft=draft)], skip=True)
    assert skipped.failed == (0,) and skipped.media["image_patches"].unique().tolist() == [128]


def test_a_picture_replaced_by_one_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="here: 6x8 pixels, and 8x6 when it was packed"):
        images.load(Image(Blob(png(6, 8)), 8, 6), "here")


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_costs_the_same_tokens_and_nearly_the_same_pixels(kind: str, formats: Any) -> None:
    rng = np.random.default_rng(0)
    scene = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((1280, 960), 3)
    asked = [prompt(probe("image", Blob(jpeg(scene, quality=90)), "here"))]
    limits = Limits(max_pixels=300 * 28 * 28)
    exact, draft = (formats[kind].collate(asked, [x]) for x in (limits, Limits(max_pixels=300 * 28 * 28, draft=True)))
    assert exact.lengths == draft.lengths
    apart = (exact.media["image_patches"].int() - draft.media["image_patches"].int()).abs().float()
    assert 0 < apart.mean() < 1


@pytest.mark.installed
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_drafted_as_a_picture_is(kind: str, formats: Any) -> None:
    asked = [prompt(probe("video", Blob(film(50, 640, 480)), "here"))]
    exact, draft = (
        formats[kind].collate(asked, [Limits(max_video_pixels=60 * 28 * 28, draft=d)]) for d in (False, True)
    )
    assert exact.lengths == draft.lengths and exact.media["video_grid"].equal(draft.media["video_grid"])
    apart = (exact.media["video_patches"].int() - draft.media["video_patches"].int()).abs().float()
    assert 0 < apart.mean() < 1.5


# Animations


def test_a_gif_of_a_million_frames_is_refused_before_its_frames_are_listed() -> None:
    data = gif(4, 4, 2)
    body = data.index(b"\x21\xf9", 13)
    body = data.index(b"\x21\xf9", body + 2)  # the second frame, without its trailer
    bomb = data[:body] + data[body:-1] * 1_000_000 + b";"
    with pytest.raises(DataError, match=r"here: a clip of 4x4 pixels, 500,001 frames.*limits"):
        probe("video", Blob(bomb), "here")


def test_an_animation_whose_last_frame_costs_minutes_is_refused() -> None:
    data = bytearray(gif(4, 4, 2))
    data[6:10] = struct.pack("<HH", 8000, 4000)  # the canvas, over tiny frames
    body = data.index(b"\x21\xf9", data.index(b"\x21\xf9", 13) + 2)
    with pytest.raises(DataError, match=r"here: an animation of 8000x4000 pixels and 1,001 frames.*make it a video"):
        probe("video", Blob(bytes(data[:body] + data[body:-1] * 1000 + b";")), "here")


# Clips


class Counted:
    """A PyAV container that counts seeks and decoded frames."""

    def __init__(self, container: Any) -> None:
        self.container, self.seeks, self.frames = container, 0, 0

    def seek(self, *args: Any, **named: Any) -> None:
        self.seeks += 1
        self.container.seek(*args, **named)

    def decode(self, stream: Any) -> Iterator[Any]:
        for frame in self.container.decode(stream):
            self.frames += 1
            yield frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    opened: list[Counted] = []
    real = videos._opened

    @contextmanager
    def counting(*args: Any) -> Iterator[Any]:
        with real(*args) as (container, stream):
            opened.append(Counted(container))
            yield opened[-1], stream

    monkeypatch.setattr(videos, "_opened", counting)
    return opened


@pytest.mark.installed
def test_a_few_frames_of_a_long_clip_decode_a_group_each_and_not_the_clip(counted: list[Counted]) -> None:
    clip = probe("video", Blob(film(1500, 64, 48, gop=25)), "here")
    wanted, _ = videos.sample(clip, 0.1, 8)
    found = videos.decode(clip, wanted, "here")
    assert len(found) == 6 and clip.frames == 1500
    assert counted[-1].seeks == 6 and counted[-1].frames <= 6 * 25
    expected = [3 * i % 200 for i in wanted]
    assert (found[:, 0, :, 0].float().mean(1) - torch.tensor(expected)).abs().max() < 4


@pytest.mark.installed
@pytest.mark.parametrize("step", [1, 2, 3])
def test_dense_frames_are_decoded_in_one_run(step: int, counted: list[Counted]) -> None:
    clip = probe("video", Blob(film(200, 64, 48, gop=25)), "here")
    wanted = list(range(10, 160, step))
    dense = videos.decode(clip, wanted, "here")
    assert counted[-1].seeks == 1 and counted[-1].frames == wanted[-1] + 1
    alone = torch.cat([videos.decode(clip, [i], "here") for i in wanted[::17]])
    assert torch.equal(dense[::17], alone)


@pytest.mark.installed
def test_a_clip_inside_a_tar_is_read_as_one_in_memory(tmp_path: Path) -> None:
    data = film(60, 64, 48)
    (tmp_path / "x.tar").write_bytes(b"before" * 999 + data + b"behind" * 999)
    inside = Blob(path=str(tmp_path / "x.tar"), offset=5994, length=len(data))
    clip, same = probe("video", inside, "here"), probe("video", Blob(data), "here")
    assert (clip.width, clip.height, clip.frames, clip.seconds) == (64, 48, 60, 2.4)  # type: ignore[union-attr]
    assert torch.equal(videos.decode(clip, [0, 31, 59], "x"), videos.decode(same, [0, 31, 59], "x"))  # type: ignore[arg-type]


@pytest.mark.installed
@pytest.mark.parametrize("turn", [0, 90, -90, 180])
def test_a_drafted_frame_has_the_size_that_is_asked_for_and_nearly_the_exact_pixels(turn: int) -> None:
    av = pytest.importorskip("av")
    out, rng = BytesIO(), np.random.default_rng(1)
    scene = PIL.Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((640, 480), 3)
    with av.open(out, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        stream.set_display_rotation(turn)
        for packet in [*stream.encode(av.VideoFrame.from_image(scene)), *stream.encode()]:
            target.mux(packet)
    clip = videos.probe(Blob(out.getvalue()), "here")
    size = (224, 168) if turn % 180 else (168, 224)
    exact, draft = (patches.of_video(clip, [0], *size, GEOMETRY, "here", d) for d in (False, True))
    assert next(videos.load(clip, [0], "here", size)).shape == (*size, 4)
    assert exact.shape == draft.shape
    assert (exact.int() - draft.int()).abs().float().mean() < 1.5


@pytest.mark.installed
def test_a_clip_whose_codec_says_more_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = film(4, 320, 240)
    with monkeypatch.context() as smaller:
        smaller.setattr(videos, "MAX_PIXELS", 320 * 200)
        with pytest.raises(DataError, match="here: a clip of 320x240 pixels"):
            videos.probe(Blob(data), "here")
        with pytest.raises(DataError, match="here: the clip cannot be read"):  # the row said less than the bytes do
            videos.decode(Video(Blob(data), 32, 24, 4, 0.16), [0], "here")
    at = data.rindex(b"avc1") + 28  # the container's claim: width and height of the sample entry
    assert struct.unpack(">HH", data[at : at + 4]) == (320, 240)
    lying = data[:at] + struct.pack(">HH", 65535, 65535) + data[at + 4 :]
    try:
        clip = videos.probe(Blob(lying), "here")
        assert (clip.width, clip.height) == (320, 240)
    except DataError as error:
        assert "here: " in str(error)


LONG_CLIP = """
import sys
from pathlib import Path
from omni2vec.data.parts import video
from omni2vec.data.types import Blob
from omni2vec.model.backbones import patches
import torch
torch.set_num_threads(1)
def peak():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")) / 1024
clip = video.probe(Blob(path=sys.argv[1]), "here")
geometry = patches.Geometry(14, 2, 2)
patches.of_video(clip, [0, 1], 56, 56, geometry, "here")
before = peak()
patches.of_video(clip, list(range(0, clip.frames, 2)), 56, 56, geometry, "here")
print(peak() - before)
"""


@pytest.mark.installed
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_long_clip_costs_one_frame_at_its_own_size_and_its_patches(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    path.write_bytes(film(40, 1280, 720, gop=20, noise=True, rate=10))
    assert path.stat().st_size > 20_000_000  # nor are its bytes held
    out = subprocess.run([sys.executable, "-c", LONG_CLIP, str(path)], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 16, out.stdout  # MiB; its 20 frames are 70 at their own size, its patches 1


# Sounds


def test_the_beginning_of_a_sound_is_the_beginning_of_the_whole() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100 * 3, 2))
    sound = audio.probe(Blob(wav(noise, 44_100, channels=2)), "here")
    for rate in (44_100, 16_000, 48_000, 8000):
        whole = audio.decode(sound, "here", rate)
        for seconds in (0.001, 0.5, 1.0, 2.999, 3.0, 9.0):
            found = audio.decode(sound, "here", rate, seconds)
            assert len(found) == min(len(whole), round(seconds * rate))
            assert torch.equal(found, whole[: len(found)]), (rate, seconds)


def test_thirty_seconds_of_four_hours_read_thirty_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, frames = tmp_path / "long.wav", 4 * 3600 * 8000
    with path.open("wb") as file:
        file.write(wav(np.zeros(8000), 8000)[:-16_000])
        file.truncate(44 + 2 * frames)  # a hole: it costs no disk
        for at, value in ((4, 36 + 2 * frames), (40, 2 * frames)):
            file.seek(at)
            file.write(struct.pack("<I", value))
    read, real = [0], window._Window.readinto

    def counting(self: Any, buffer: Any) -> int:
        found = real(self, buffer)
        read[0] += found
        return found

    monkeypatch.setattr(window._Window, "readinto", counting)
    sound = audio.probe(Blob(path=str(path)), "here")
    assert sound.seconds == 4 * 3600 and read[0] < 200_000
    assert len(audio.decode(sound, "here", 16_000, 30.0)) == 480_000
    assert read[0] < 2 * 30 * 8000 + 600_000


@pytest.mark.parametrize("kind", [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_a_compressed_sound_is_read_to_its_end_and_by_its_beginning(kind: tuple[str, str]) -> None:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    tone = 0.5 * np.sin(np.arange(48_000 * 4) / 20)
    try:
        soundfile.write(file, np.stack([tone, tone], 1), 48_000, format=kind[0], subtype=kind[1])
    except (ValueError, RuntimeError):
        pytest.skip(f"this libsndfile writes no {kind}")
    sound = audio.probe(Blob(file.getvalue()), "here")
    whole = audio.decode(sound, "here", 16_000)
    assert len(whole) / 16_000 == pytest.approx(sound.seconds, abs=1e-4)
    assert torch.equal(audio.decode(sound, "here", 16_000, 1.5), whole[:24_000])
    with pytest.raises(DataError, match="here: "):
        audio.decode(Audio(Blob(file.getvalue()[:300]), 4.0, 48_000), "here", 16_000)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (40, 2_000_000_000, "speaks of 2,000,000,000 bytes"),  # samples that are not there
        (40, 0xFFFFFFFF, "speaks of|cannot be read"),  # "unknown", as a pipe writes it
        (22, 0, "cannot be read"),  # no channel
        (24, 1, "limits"),  # one sample a second
        (24, 0xFFFFFFFF, "limits|cannot be read"),
        (34, 80, "cannot be read"),  # bits a sample
        (16, 2, "cannot be read"),  # a format chunk of two bytes
    ],
)
def test_a_wav_with_a_lying_header_is_refused_by_name(at: int, value: int, message: str) -> None:
    data = bytearray(wav(np.zeros(8000), 8000))
    size = 4 if at in (16, 24, 40) else 2
    data[at : at + size] = value.to_bytes(size, "little")
    with pytest.raises(DataError, match=f"here: .*({message})"):
        audio.decode(audio.probe(Blob(bytes(data)), "here"), "here", 16_000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_is_refused_when_it_is_counted(kind: str, formats: Any) -> None:
    sound = probe("audio", Blob(wav(np.zeros(80), 8000)), "here")
    with pytest.raises(DataError, match="shop/000001/7: holds audio"):
        formats[kind].count([prompt(sound)], [Limits()])


# Damage


def kinds_of_media() -> dict[str, tuple[str, bytes]]:
    """name -> (kind, bytes) of a medium in every format that can be written here."""
    rng = np.random.default_rng(0)
    noise = PIL.Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    found: dict[str, tuple[str, bytes]] = {"wav": ("audio", wav(rng.uniform(-1, 1, 2000), 8000))}
    for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF"):
        out = BytesIO()
        noise.save(out, name)
        found[name] = ("image", out.getvalue())
    for name in ("GIF", "WEBP", "PNG"):
        out = BytesIO()
        noise.save(out, name, save_all=True, append_images=[noise.rotate(180), noise], duration=100)
        found[f"moving {name}"] = ("video", out.getvalue())
    found["mp4"] = ("video", film(12, 64, 48, gop=5))
    return found


@pytest.mark.installed
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the damage
def test_damaged_media_are_refused_by_name_or_seen_and_nothing_else_is_raised() -> None:
    rng, refused, seen = np.random.default_rng(0), 0, 0
    for name, (kind, whole) in kinds_of_media().items():
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(
                0, min(len(data), int(rng.choice([64, 400, len(data)]))), int(rng.integers(1, 6))
            ):
                data[place] = rng.integers(256)
            data = data[: int(rng.choice([len(data), len(data), int(rng.integers(len(data)))]))]
            try:
                part = probe(kind, Blob(bytes(data)), f"key {name}")  # type: ignore[arg-type]
                if isinstance(part, Image):
                    images.load(part, f"key {name}", None if rng.integers(2) else (20, 30))
                elif isinstance(part, Video):
                    sum(1 for _ in videos.load(part, videos.sample(part, 2.0, 6)[0], f"key {name}"))
                elif isinstance(part, Audio):
                    audio.decode(part, f"key {name}", 16_000)
                seen += 1
            except DataError as error:
                assert str(error).startswith(f"key {name}"), error
                refused += 1
    assert refused > 200 and seen > 100


@pytest.mark.installed
def test_a_title_that_is_no_utf_8_is_no_fault_of_the_clip() -> None:
    data = film(4, 64, 48)
    at = data.index(b"isom", 8)  # a brand, which is told as text
    clip = videos.probe(Blob(data[:at] + b"i\xffom" + data[at + 4 :]), "here")
    assert clip.frames == 4


# The window


def test_a_window_reads_what_its_file_has_between_its_bounds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    with window.opened(Blob(path=str(tmp_path / "a"), offset=10, length=20)) as file:
        assert window.size(file) == 20
        assert file.read() == bytes(range(10, 30)) and file.read(1) == b""
        assert (file.seek(-5, 2), file.read(2), file.tell(), file.seek(1, 1)) == (15, bytes([25, 26]), 17, 18)
    with window.opened(Blob(path=str(tmp_path / "a"), offset=90)) as file:
        assert file.read() == bytes(range(90, 100))
    for blob, message in ((Blob(path=str(tmp_path / "a"), offset=90, length=20), "10 bytes at offset 90, expected 20"),
                          (Blob(path=str(tmp_path / "b")), "moved or removed")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            window.opened(blob)


def test_a_view_has_the_bytes_of_its_blob_and_copies_none_of_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    inside = Blob(path=str(path), offset=10, length=20)
    assert window.view(inside) == inside.read() and window.view(Blob(b"xyz")) == b"xyz"
    assert window.view(inside).obj is window.view(Blob(path=str(path), offset=50, length=9)).obj
    alone = Blob(path=str(path), offset=0, length=100)  # a file of its own may be replaced: it is read
    assert window.view(alone) == alone.read() and window.view(alone).obj is not window.view(inside).obj
    held = Blob(path=type("Held", (str,), {})(path), offset=10, length=20)  # of a bounded cache
    assert window.view(held) == inside.read() and window.view(held).obj is not window.view(inside).obj
    for blob, message in (
        (Blob(path=str(path), offset=90, length=20), "10 bytes at offset 90, expected 20"),
        (Blob(path=str(tmp_path / "b"), offset=5, length=5), "moved or removed"),
    ):
        with pytest.raises(DataError, match=message):
            window.view(blob)
