"""Small examples with every kind of part, and real bytes for them."""

from __future__ import annotations

import wave
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
from omni2vec.data.parts import Kind, probe
from omni2vec.data.types import Blob, Event, Events, Example, Item, Part, Step, Text


def nowhere(step: Step) -> Path:
    raise AssertionError("no step is needed")


def png(width: int, height: int, colour: str = "red") -> bytes:
    file = BytesIO()
    PIL.Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def gif(width: int, height: int, frames: int) -> bytes:
    pictures = [PIL.Image.new("RGB", (width, height), (40 * i, 0, 255 - 40 * i)) for i in range(frames)]
    file = BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return file.getvalue()


def wav(values: np.ndarray, rate: int, channels: int = 1) -> bytes:
    """16-bit PCM of values in -1 to 1, (n,) or (n, channels)."""
    file = BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes((values * 32767).round().astype("<i2").tobytes())
    return file.getvalue()


def part(kind: Kind, data: bytes) -> Part:
    return probe(kind, Blob(data), "a test")


def everything(i: int = 0) -> Example:
    """One example that uses every field and every kind of part; a picture stands in it three times."""
    picture = part("image", png(8 + i, 6))
    clip = part("video", gif(10, 12, 3))
    sound = part("audio", wav(np.zeros(800 + i), 8000))
    history = Events((Event("viewed", "a hat", 10.5), Event("bought", "a red hat", 11.0)), "shop")
    return Example(
        key=f"every/{i}",
        source="every",
        task="retrieval",
        query=Item((Text("what is „this“?"), picture, history, Text(f"number {i}"))),
        positives=(Item((picture, clip)), Item.text("an answer")),
        negatives=(Item((sound,)), Item((picture,), given_id="my own id")),
        known=("x", "y"),
        label="a label",
        instruction="Find it.",
        target_instruction="Represent it.",
        answer="an answer",
        scores={"label": (1.0, 0.5, 0.0, 0.25), "teacher": (0.1, 0.2, 0.3, 0.4)},
    )


def plain(i: int, source: str = "plain", score: float | None = None) -> Example:
    """A text with one text as its answer."""
    scores = {} if score is None else {"label": (score,)}
    return Example(f"{source}/{i}", source, "retrieval", Item.text(f"q{i}"), (Item.text(f"a{i}"),), scores=scores)
