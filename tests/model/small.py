"""Small models and mixed items that several tests share."""

import io

import numpy as np
from omni2vec.data.types import Item
from omni2vec.model.backbones.tiny import Tiny, build
from omni2vec.model.encode import as_items
from PIL import Image

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TEXTS = ["a red circle above the blue square", "find the image that matches the caption", "0.5 seconds"] * 20


def tiny(kind="qwen2_vl", **settings):
    return build(Tiny(texts=(), kind=kind, width=64, heads=4, layers=2, vision=64, depth=3, **settings), TEXTS)


def picture(rng, width, height):
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def clip(rng, frames, width, height):
    buffer = io.BytesIO()
    first, *rest = [picture(rng, width, height) for _ in range(frames)]
    first.save(buffer, "WEBP", save_all=True, append_images=rest, lossless=True, duration=250)
    return buffer.getvalue()


def mixed(count=12, seed=0, video=True) -> list[Item]:
    """Texts, pictures of several sizes, clips, and mixtures of them in different orders."""
    rng = np.random.default_rng(seed)
    kinds = [
        lambda: {"text": "a red circle " * int(rng.integers(1, 8))},
        lambda: {"image": picture(rng, int(rng.integers(40, 140)), int(rng.integers(40, 140)))},
        lambda: {"image": picture(rng, 60, 80), "text": "find it"},
        lambda: {"text": "two", "image": [picture(rng, 50, 50), picture(rng, 90, 40)]},
        lambda: {"text": "look", "video": clip(rng, 6, 70, 50), "image": picture(rng, 48, 48)},
        lambda: {"video": clip(rng, 5, 60, 60)},
    ]
    return as_items([kinds[i % (len(kinds) if video else 4)]() for i in range(count)])[0]
