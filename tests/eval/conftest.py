"""A real Encoder without learned weights, and rows for it: hashed words and colour histograms in one space."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import product
from random import Random

import numpy as np
import pytest
import torch
from omni2vec.data.types import Audio, Blob, Example, Image, Item, Side, Text, Video
from PIL import Image as Pictures
from PIL import ImageDraw
from torch import Tensor

COLOURS = {"red": (214, 40, 40), "green": (46, 160, 67), "blue": (40, 90, 214), "yellow": (236, 190, 20)}
SHAPES = ("circle", "square", "triangle")
WIDTH = 256


class Bag:
    """Words hashed to signed axes. A picture is the names of its colours, by their share; it knows no shapes."""

    digest = "bag-of-words-and-colours"

    def __init__(self) -> None:
        self.seen: list[int] = []  # items of each call

    def encode_items(
        self, items: Sequence[Item] | Iterable[Item], *, side: Side = "query", instruction: str = "", progress: str = ""
    ) -> Tensor:
        items = list(items)
        self.seen.append(len(items))
        vectors = np.stack([sum((self._part(p) for p in i.parts), np.zeros(WIDTH)) for i in items])
        return torch.nn.functional.normalize(torch.from_numpy(vectors).float(), dim=1)

    def _part(self, part: object) -> np.ndarray:
        if isinstance(part, Text):
            return sum((_axis(w) for w in re.findall(r"\w+", part.text.lower())), np.zeros(WIDTH)) + 1e-3
        if isinstance(part, Image | Video):
            return _colours(part.blob.read())
        return np.full(WIDTH, 1e-3)


def _axis(word: str) -> np.ndarray:
    raw = int.from_bytes(blake2b(word.encode(), digest_size=4).digest(), "little")
    out = np.zeros(WIDTH)
    out[raw % WIDTH] = 1 if raw >> 16 & 1 else -1
    return out


def _colours(data: bytes) -> np.ndarray:
    pixels = np.asarray(Pictures.open(io.BytesIO(data)).convert("RGB").resize((32, 32)), np.float64).reshape(-1, 3)
    out = np.full(WIDTH, 1e-3)
    for name, rgb in COLOURS.items():
        out += _axis(name) * float((np.abs(pixels - rgb).sum(1) < 90).mean()) * 8
    return out


def scene(shapes: Sequence[tuple[str, str]], seed: int, size: int = 96, kind: str = "PNG") -> Image:
    """A picture of coloured shapes side by side on a pale ground."""
    return Image(Blob(_save([_draw(shapes, seed, size)], kind)), size, size)


def clip(shape: tuple[str, str], seed: int, frames: int = 6, size: int = 64) -> Video:
    pictures = [_draw([shape], seed, size, shift=i * 4 - 10) for i in range(frames)]
    return Video(Blob(_save(pictures, "WEBP")), size, size, frames, frames / 4)


def _draw(shapes: Sequence[tuple[str, str]], seed: int, size: int, shift: int = 0) -> Pictures.Image:
    rng = Random(seed)
    picture = Pictures.new("RGB", (size, size), tuple(rng.randint(225, 250) for _ in range(3)))
    pen = ImageDraw.Draw(picture)
    cell = size / len(shapes)
    for i, (colour, shape) in enumerate(shapes):
        r = cell * rng.uniform(0.28, 0.42)
        x, y = cell * (i + 0.5) + shift, size / 2 + rng.uniform(-0.1, 0.1) * size
        box = [x - r, y - r, x + r, y + r]
        if shape == "circle":
            pen.ellipse(box, COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, COLOURS[colour])
        else:
            pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], COLOURS[colour])
    return picture


def _save(pictures: list[Pictures.Image], kind: str) -> bytes:
    out = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:], "duration": 250} if len(pictures) > 1 else {}
    pictures[0].save(out, kind, **more)
    return out.getvalue()


class Rows(list[Example]):
    """Rows in memory."""

    name = "memory"
    digest = "memory"


def text(words: str) -> Item:
    return Item.text(words)


def scenes(seed: int = 0, count: int = 24) -> list[tuple[list[tuple[str, str]], Image]]:
    pairs = [[a, b] for a, b in product(product(COLOURS, SHAPES), repeat=2) if a[0] != b[0]]
    chosen = Random(seed).sample(pairs, count)
    return [(s, scene(s, seed * 1000 + i)) for i, s in enumerate(chosen)]


def caption(shapes: Sequence[tuple[str, str]]) -> str:
    return " and ".join(f"a {c} {s}" for c, s in shapes)


def small_world(seed: int = 0, count: int = 24) -> Rows:
    """Rows of every kind: two directions of retrieval, classes, questions, regions, clips, tones, graded pairs."""
    rows, made = Rows(), scenes(seed, count)
    for i, (shapes, picture) in enumerate(made):
        item, first = Item((picture,)), shapes[0]
        rng = Random(seed + i)
        rows += [
            _row("captions", "retrieval", i, text(caption(shapes)), item, instruction="Find the picture."),
            _row("colour", "classification", i, item, text(first[0]), instruction="What is the first colour?"),
            _row(
                "questions",
                "vqa",
                i,
                Item((picture, Text(f"What colour is the {first[1]} on the left?"))),
                text(first[0]),
                [text(c) for c in COLOURS if c != first[0]],
            ),
            _row(
                "regions",
                "grounding",
                i,
                Item((picture, Text(f"the {first[0]} {first[1]}"))),
                Item((scene([first], i, 48),)),
                [Item((scene([s], i + 500, 48),)) for s in [*shapes[1:], (rng.choice(list(COLOURS)), "circle")]],
            ),
            _row("clips", "retrieval", i, text(f"a moving {first[0]} {first[1]}"), Item((clip(first, seed + i),))),
            _row("tones", "retrieval", i, text(f"tone {i}"), Item((Audio(Blob(b"RIFF%d" % i), 1.5 + i, 16000),))),
        ]
        other = made[rng.randrange(count)][0] if i % 3 else shapes
        shared = len(set(shapes) & set(other)) + len({c for c, _ in shapes} & {c for c, _ in other})
        graded = _row("similar", "sts", i, text(caption(shapes)), text("There is " + caption(other[::-1])))
        rows.append(_scored(graded, 1 + shared))
    return rows


def _row(
    source: str, task: str, i: int, query: Item, right: Item, wrong: Sequence[Item] = (), instruction: str = ""
) -> Example:
    return Example(f"{source}/0/{i}", source, task, query, (right,), tuple(wrong), instruction=instruction)


def _scored(example: Example, score: float) -> Example:
    return replace(example, scores={"label": (float(score),)})


@pytest.fixture(scope="session")
def bag() -> Bag:
    return Bag()


@pytest.fixture(scope="session")
def words() -> Bag:
    """Reads words, sees nothing: the base that a model with eyes is held against."""

    class Words(Bag):
        digest = "words-only"

        def _part(self, part: object) -> np.ndarray:
            return super()._part(part) if isinstance(part, Text) else np.full(WIDTH, 1e-3)

    return Words()


@pytest.fixture(scope="session")
def rows() -> Rows:
    return small_world(count=60)


@pytest.fixture
def made() -> type[Rows]:
    """Rows in memory, from a list of Examples."""
    return Rows
