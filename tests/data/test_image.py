"""Pictures: sizes, upright RGB pixels, deep and transparent ones, drafts, and what is refused."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from omni2vec.data import parts
from omni2vec.data.parts import image as images
from omni2vec.data.types import Blob, DataError, Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

RNG = np.random.default_rng(0)
SCENE = (np.add.outer(np.arange(60), np.arange(90))[..., None] + np.array([0, 40, 80])).astype(np.uint8)  # (60, 90, 3)


def encode(picture: PIL.Image.Image, kind: str, **options: object) -> bytes:
    out = BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes) -> Tensor:
    return images.decode(images.probe(Blob(data), "here"), "here")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_lossless_formats_give_their_pixels_back(kind: str) -> None:
    grey = np.repeat(SCENE[..., :1], 3, axis=2)  # few colours: a GIF holds them all
    options = {"lossless": True} if kind == "WEBP" else {}
    found = pixels(encode(PIL.Image.fromarray(grey), kind, **options))
    assert found.dtype == torch.uint8 and np.array_equal(found.permute(1, 2, 0).numpy(), grey)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_equals_torchvision_and_pillow(options: dict[str, object]) -> None:
    data = encode(PIL.Image.fromarray(SCENE), "JPEG", **options)
    found = pixels(data)
    assert torch.equal(found, decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(PIL.Image.open(BytesIO(data))))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_is_undone_in_size_and_pixels(turn: int, kind: str) -> None:
    exif = PIL.Image.Exif()
    exif[images.ORIENTATION] = turn
    data = encode(PIL.Image.fromarray(SCENE), kind, exif=exif)
    found = images.probe(Blob(data), "here")
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(BytesIO(data)))
    assert (found.width, found.height) == upright.size
    assert np.array_equal(images.decode(found, "here").permute(1, 2, 0).numpy(), np.asarray(upright.convert("RGB")))


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize(("wanted", "scale"), [((60, 90), 1), ((31, 46), 1), ((30, 45), 2), ((15, 20), 4), ((2, 2), 8)])
def test_a_draft_is_the_smallest_dct_scale_that_still_covers_what_is_wanted(
    wanted: tuple[int, int], scale: int, turn: int
) -> None:
    exif = PIL.Image.Exif()
    exif[images.ORIENTATION] = turn
    data = encode(PIL.Image.fromarray(SCENE), "JPEG", exif=exif)
    found = images.decode(images.probe(Blob(data), "here"), "here", wanted if turn == 1 else wanted[::-1])
    height, width = -(-60 // scale), -(-90 // scale)
    assert tuple(found.shape[1:]) == ((height, width) if turn == 1 else (width, height))


def test_a_draft_of_anything_but_jpeg_is_the_full_decode() -> None:
    image = images.probe(Blob(encode(PIL.Image.fromarray(SCENE), "PNG")), "here")
    assert torch.equal(images.decode(image, "here", (5, 5)), images.decode(image, "here"))


def test_transparency_is_laid_on_white() -> None:
    layers = np.zeros((2, 2, 4), np.uint8)
    layers[..., 3] = [[0, 255], [128, 0]]
    found = pixels(encode(PIL.Image.fromarray(layers), "PNG"))
    assert found[0].tolist() == [[255, 0], [127, 255]]


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    paletted = PIL.Image.new("P", (2, 1), 0)
    paletted.putpalette([10, 20, 30, 40, 50, 60])
    paletted.putpixel((1, 0), 1)
    found = pixels(encode(paletted, "PNG", transparency=1))
    assert found[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_grey_with_alpha_and_rgb_with_a_colour_key_are_laid_on_white() -> None:
    grey = PIL.Image.new("LA", (1, 1), (7, 0))
    keyed = encode(PIL.Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixels(encode(grey, "PNG")).unique().tolist() == pixels(keyed).unique().tolist() == [255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert pixels(encode(PIL.Image.fromarray(deep), kind))[1].tolist() == [[0, 100, 255]]


def test_float_grey_of_zero_to_one_is_scaled_and_a_nan_is_black() -> None:
    deep = np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)
    assert pixels(encode(PIL.Image.fromarray(deep), "TIFF"))[2].tolist() == [[0, 128, 255, 0]]


def test_cmyk_and_bilevel_become_rgb() -> None:
    cmyk = encode(PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert (pixels(cmyk)[:, 0, 0].int() - torch.tensor([255, 0, 0])).abs().max() <= 3
    assert pixels(encode(PIL.Image.new("1", (3, 3), 1), "PNG")).unique().tolist() == [255]


def test_a_picture_larger_than_one_memory_block_decodes_the_same() -> None:
    wide = np.broadcast_to(np.arange(2400, dtype=np.uint8)[None, :, None], (2400, 2400, 3))  # 23 MB as Pillow holds it
    found = pixels(encode(PIL.Image.fromarray(np.ascontiguousarray(wide)), "BMP"))
    assert torch.equal(found[0, 0], found[2, -1]) and found[1, 7, 300] == 300 % 256


def test_the_pixels_outlive_the_picture_they_came_from() -> None:
    many = [pixels(encode(PIL.Image.new("RGB", (64, 64), (n, n, n)), "PNG")) for n in range(50)]
    assert [int(p.min()) for p in many] == [int(p.max()) for p in many] == list(range(50))


def test_a_picture_can_be_an_address_inside_a_file(tmp_path) -> None:
    data = encode(PIL.Image.fromarray(SCENE), "PNG")
    (tmp_path / "x.tar").write_bytes(b"before" + data + b"behind")
    image = images.probe(Blob(path=str(tmp_path / "x.tar"), offset=6, length=len(data)), "here")
    assert (image.width, image.height) == (90, 60)
    assert np.array_equal(images.decode(image, "here").permute(1, 2, 0).numpy(), SCENE)


@pytest.mark.parametrize("size", [(28, 56), (61, 92), (90, 60), (7, 5)])
def test_resize_equals_torchvisions_antialiased_bicubic(size: tuple[int, int]) -> None:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    noise = torch.from_numpy(RNG.integers(0, 256, (3, 60, 90), dtype=np.uint8))
    padded = torch.cat([noise, noise[:1]]).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    expected = resize(noise, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(images.resize(noise, *size), expected)
    assert torch.equal(images.resize(padded, *size)[:3], expected)
    assert torch.equal(images.resize(noise[None], *size)[0], expected)


def test_probe_reads_the_header_alone() -> None:
    data = encode(PIL.Image.fromarray(RNG.integers(0, 256, (300, 400, 3), dtype=np.uint8)), "PNG")
    found = images.probe(Blob(data[:400]), "here")  # nearly all of the pixels are missing
    assert (found.width, found.height) == (400, 300)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_picture_cut_short_names_its_place(kind: str) -> None:
    data = encode(PIL.Image.fromarray(RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8)), kind)
    with pytest.raises(DataError, match=r"shard-000001\.tar/7"):
        images.decode(Image(Blob(data[: len(data) // 2]), 90, 60), "shard-000001.tar/7")


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"GIF89a", b"hello" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_bytes_that_are_no_picture_are_refused_with_their_place(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^here: .*(replace|Replace)") as error:
        images.probe(Blob(data), "here")
    assert "0x" not in str(error.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [13_500, 40_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(DataError, match=r"here: .*shrink the picture"):
        images.probe(Blob(png_header(side, side)), "here")


def test_the_table_of_kinds_chooses_by_name_and_refuses_what_it_does_not_know() -> None:
    data = encode(PIL.Image.fromarray(SCENE), "PNG")
    assert parts.probe("image", Blob(data), "here") == Image(Blob(data), 90, 60)
    assert [parts.kind_of(n) for n in ("a/B.JPG", "c.mp4", "d.wav")] == ["image", "video", "audio"]
    with pytest.raises(DataError, match=r"x\.xyz.*\.jpg"):
        parts.kind_of("x.xyz")
    with pytest.raises(DataError, match="smell"):
        parts.probe("smell", Blob(data), "here")  # type: ignore[arg-type]
