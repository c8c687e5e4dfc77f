"""Items as a page shows them: small pictures, clips and short sounds as data URIs, texts cut short."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from ..data.types import Audio, DataError, Events, Image, Item, Part, Text, Video

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

SIDE = 224  # pixels of a still's longer side
CLIP_SIDE, CLIP_FRAMES = 144, 8
CHARACTERS, EVENTS = 360, 6
QUALITY = 78  # of WebP
SOUND_BYTES = 48 << 10  # a longer sound is only named: a page holds dozens
SOUNDS = {b"RIFF": "audio/wav", b"OggS": "audio/ogg", b"fLaC": "audio/flac", b"ID3": "audio/mpeg"}  # by first bytes


@dataclass(frozen=True)
class View:
    """One part: `text`, or a `picture` or `sound` (data URIs) that `note` describes, or a note alone."""

    text: str = ""
    picture: str = ""
    sound: str = ""
    note: str = ""


def views(item: Item, where: str, side: int = SIDE) -> list[View]:
    """The item's parts in order. A medium that cannot be read becomes a note that says so: a page shows what it can."""
    return [_view(part, where, side) for part in item.parts]


def _view(part: Part, where: str, side: int) -> View:
    match part:
        case Text(text):
            return View(text=_cut(text))
        case Events(events, source):
            tail = "; ".join(f"{e.action} {e.text}" for e in events[-EVENTS:])
            return View(text=_cut(tail), note=f"{source or 'events'}, the last of {len(events):,}")
        case Audio():
            return _sound(part)
        case Image() | Video():
            try:
                return _still(part, where, side) if isinstance(part, Image) else _clip(part, where)
            except DataError as error:
                return View(note=f"cannot be shown: {error}")


def _sound(audio: Audio) -> View:
    note = f"sound, {audio.seconds:.1f} s at {audio.rate / 1000:g} kHz"
    data = audio.blob.read()
    kind = next((kind for start, kind in SOUNDS.items() if data.startswith(start)), "")
    if not kind or len(data) > SOUND_BYTES:
        return View(note=note)
    return View(sound=f"data:{kind};base64,{base64.b64encode(data).decode()}", note=note)


def _still(image: Image, where: str, side: int) -> View:
    from ..data.parts.image import decode

    height, width = _size(image.height, image.width, side)
    picture = _picture(decode(image, where, (height, width)), height, width)
    return View(picture=_uri([picture], 0), note=f"picture, {image.width} × {image.height}")


def _clip(video: Video, where: str) -> View:
    from ..data.parts.video import decode

    count = min(CLIP_FRAMES, max(video.frames, 1))
    frames = decode(video, [i * video.frames // count for i in range(count)], where)
    height, width = _size(video.height, video.width, CLIP_SIDE)
    pictures = [_picture(frame, height, width) for frame in frames]
    return View(picture=_uri(pictures, video.seconds / count), note=f"clip, {video.seconds:.1f} s")


def _size(height: int, width: int, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(height, width, 1))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _picture(pixels: Tensor, height: int, width: int) -> Picture:
    import PIL.Image

    whole = PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    return whole.resize((width, height), PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)


def _uri(pictures: list[Picture], frame_s: float) -> str:
    out = BytesIO()
    if len(pictures) == 1:
        pictures[0].save(out, "WEBP", quality=QUALITY)
    else:
        duration = max(1, round(1000 * frame_s))
        pictures[0].save(
            out, "WEBP", quality=QUALITY, save_all=True, append_images=pictures[1:], duration=duration, loop=0
        )
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1].rstrip() + "…"
