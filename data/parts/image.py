"""Pictures: encoded bytes -> sizes (header only), upright RGB pixels, resized pixels.

Pixels are uint8 and stay so: they are normalised on the device. `load` gives them as Pillow holds them, four bytes a
pixel: nothing is copied, and torch's uint8 resize is a third faster on four channels than on three.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

from ..types import Blob, DataError, Image
from . import window

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

MAX_PIXELS = 178_956_970  # above it Pillow itself speaks of a decompression bomb: half a gigabyte as RGB
# No more than these: Pillow knows formats that start other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the picture by a quarter
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # Pillow's modes of one channel with more than eight bits
# What Pillow raises on bytes that are cut, broken or hostile: every parser has its own.
PARSING = (SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, struct.error, zlib.error)
BROKEN = (OSError, ValueError, RuntimeError, *PARSING)
_ADDRESS = re.compile(r"\s*<[^<>]* object at 0x[0-9a-fA-F]+>")  # Pillow names the buffer that it was given


def probe(blob: Blob, where: str) -> Image:
    """The picture's size as displayed. Reads the header only. Raises DataError if it is none, broken, or a bomb."""
    picture = open_picture(blob.read(), where)
    width, height = picture.size
    return Image(blob, height, width) if _orientation(picture) >= 5 else Image(blob, width, height)


def decode(image: Image, where: str, draft_for: tuple[int, int] | None = None) -> Tensor:
    """Pixels (3, H, W) uint8, upright, RGB, transparency laid on white, deep grey scaled to eight bits.

    With `draft_for` (height, width), a JPEG may come smaller than it is, though never smaller than that: its DCT is
    decoded at 1/2, 1/4 or 1/8. Raises DataError. The result is a view with four bytes a pixel.
    """
    return load(image, where, draft_for)[..., :3].permute(2, 0, 1)


def load(image: Image, where: str, draft_for: tuple[int, int] | None = None) -> Tensor:
    """As `decode`, but (H, W, 4) contiguous: red, green, blue and a byte without meaning. Read it, never write it."""
    picture = open_picture(window.view(image.blob), where)
    turned = _orientation(picture)
    found = picture.size if turned < 5 else picture.size[::-1]
    if found != (image.width, image.height):
        raise DataError(
            f"{where}: {found[0]}x{found[1]} pixels, and {image.width}x{image.height} when it was packed; was it "
            "replaced? Pack it again"
        )
    if draft_for is not None:
        height, width = draft_for if turned < 5 else draft_for[::-1]
        picture.draft(None, (width, height))  # does nothing where the format is not JPEG
    with reading(where):
        return spare(_upright(rgb(picture), turned))


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """(..., C, H, W) uint8 -> (..., C, height, width): bicubic, antialiased, equal to transformers' fast processors."""
    from torch.nn.functional import interpolate

    if pixels.shape[-2:] == (height, width):
        return pixels
    # This way round a lone picture's outer stride says channels-last too, else torch answers in planes: half as fast.
    batch = pixels if pixels.ndim == 4 else pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    out = interpolate(batch, (height, width), mode="bicubic", antialias=True)
    return out if pixels.ndim == 4 else out[0]


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns what Pillow raises on bad bytes into a DataError that names the place."""
    from PIL.Image import DecompressionBombError

    try:
        yield
    except DataError:
        raise
    except DecompressionBombError as error:
        raise DataError(f"{where}: {error}; shrink the picture before packing") from error
    except (*BROKEN, MemoryError) as error:
        why = _ADDRESS.sub("", str(error)) or type(error).__name__
        raise DataError(f"{where}: the picture cannot be read ({why}); is it cut short? Replace or drop it") from error


def open_picture(data: bytes | memoryview, where: str) -> Picture:
    """Pillow's picture, its header read and its size checked. Raises DataError."""
    import PIL.Image

    with reading(where):
        picture = PIL.Image.open(BytesIO(data), formats=FORMATS)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{where}: {width}x{height} pixels, limit {MAX_PIXELS:,}; shrink the picture before packing")
    return picture


def rgb(picture: Picture) -> Picture:
    """Any mode -> RGB; transparency is laid on white, as a page shows it."""
    import PIL.Image

    picture.load()  # a GIF's or WebP's frame knows its mode only then
    if picture.mode in DEEP:
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        top = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", top.size, "white"), top)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def spare(picture: Picture) -> Tensor:
    """An RGB picture's own memory, (H, W, 4) uint8; a copy where Pillow keeps it in several blocks (above 16 MB)."""
    import pyarrow
    import torch
    from torch.utils.dlpack import from_dlpack

    width, height = picture.size
    try:
        flat = from_dlpack(pyarrow.array(cast(Any, picture)).flatten())
    except ValueError:
        flat = torch.frombuffer(bytearray(picture.tobytes("raw", "RGBX")), dtype=torch.uint8)
    return flat.view(height, width, 4)


def _orientation(picture: Picture) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 where there is none or where it makes no sense, as viewers do."""
    import PIL.Image

    try:
        # The PNG reader's own getexif decodes the whole picture to find a late chunk; this one stops at the header.
        value = PIL.Image.Image.getexif(picture).get(ORIENTATION, 1)
    except BROKEN:
        return 1
    return value if value in range(1, 9) else 1


def _upright(picture: Picture, turned: int) -> Picture:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return picture.transpose(turns[turned]) if turned in turns else picture


def _eight_bits(picture: Picture) -> Picture:
    """Deep grey -> L. Integers are taken as 16 bits, floats as 0 to 1 (or 0 to 255 where any exceeds 1)."""
    import numpy as np
    import PIL.Image

    values = np.nan_to_num(np.asarray(picture).astype(np.float64))
    if picture.mode != "F":
        values = values / 257
    elif values.max(initial=0) <= 1:
        values = values * 255
    return PIL.Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
