"""Pictures: encoded bytes -> sizes (header only), upright RGB pixels, resized pixels.

Two decodes: the full one, and `draft_for`, which lets a JPEG be decoded at a half, quarter or eighth inside its DCT.
Pixels are uint8 and stay so: they are normalised on the device.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

from ..types import Blob, DataError, Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb: half a gigabyte as RGB
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the picture by a quarter
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # one channel of more than eight bits
# What Pillow raises on bytes that are cut, broken or hostile.
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def probe(blob: Blob, where: str) -> Image:
    """The picture's size as displayed. Reads the header only. Raises DataError if it is none, broken, or a bomb."""
    picture = open_picture(blob.read(), where)
    width, height = picture.size
    if _orientation(picture, where) >= 5:
        width, height = height, width
    return Image(blob, width, height)


def decode(image: Image, where: str, draft_for: tuple[int, int] | None = None) -> Tensor:
    """Pixels (3, H, W) uint8, upright, RGB, transparency laid on white, deep grey scaled to eight bits.

    With `draft_for` (height, width), a JPEG may come smaller than it is, but never smaller than that: its DCT is
    decoded at 1/2, 1/4 or 1/8. The strides are channels-last where that is free.
    """
    data = image.blob.read()
    picture = open_picture(data, where)
    turned = _orientation(picture, where)
    if picture.format == "JPEG":
        if draft_for is not None:
            height, width = draft_for if turned < 5 else draft_for[::-1]
            picture.draft(None, (width, height))
        elif turned == 1 and picture.mode in ("RGB", "L"):
            return _jpeg(data, where)
    try:
        return tensor(rgb(_upright(picture, turned)))
    except (*BROKEN, MemoryError) as error:
        raise DataError(
            f"{where}: the picture cannot be decoded ({error}); is the file cut short? Replace or drop it"
        ) from error


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """(..., 3, H, W) uint8 -> (..., 3, height, width) uint8: bicubic, antialiased, as transformers' fast processors do."""
    from torch.nn.functional import interpolate

    if pixels.shape[-2:] == (height, width):
        return pixels
    batch = pixels if pixels.ndim == 4 else pixels[None]
    out = interpolate(batch, (height, width), mode="bicubic", antialias=True)
    return out if pixels.ndim == 4 else out[0]


def open_picture(data: bytes, where: str) -> Picture:
    from PIL import Image as pillow

    try:
        picture = pillow.open(BytesIO(data))
    except pillow.DecompressionBombError as error:
        raise DataError(f"{where}: {error}; limit {MAX_PIXELS:,} pixels: shrink the picture before packing") from error
    except BROKEN as error:
        raise DataError(
            f"{where}: {len(data):,} bytes that are no picture Pillow can read ({error}); replace or drop it"
        ) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{where}: {width}x{height} pixels, limit {MAX_PIXELS:,}: shrink the picture before packing")
    return picture


def _orientation(picture: Picture, where: str) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 where there is none or where it makes no sense."""
    try:
        value = picture.getexif().get(ORIENTATION, 1)
    except BROKEN:
        return 1  # broken EXIF: a viewer shows the picture as stored
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


def rgb(picture: Picture) -> Picture:
    """Any mode -> RGB; transparency is laid on white, as a page shows it."""
    from PIL import Image as pillow

    if picture.mode in DEEP:
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        top = picture.convert("RGBA")
        return pillow.alpha_composite(pillow.new("RGBA", top.size, "white"), top).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Picture) -> Picture:
    """Deep grey -> L. Integers are taken as 16 bits, floats as 0 to 1 (or 0 to 255 where they exceed 1)."""
    import numpy as np
    from PIL import Image as pillow

    values = np.asarray(picture).astype(np.float64)
    if picture.mode != "F":
        values = values / 257
    elif values.max(initial=0) <= 1:
        values = values * 255
    return pillow.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8))


def _jpeg(data: bytes, where: str) -> Tensor:
    """The whole decode in one call, straight into a tensor: equal to Pillow's, without its copies."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise DataError(
            f"{where}: the JPEG cannot be decoded ({error}); is the file cut short? Replace or drop it"
        ) from error
    return pixels


def tensor(picture: Picture) -> Tensor:
    import torch

    width, height = picture.size
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(height, width, 3).permute(2, 0, 1)
