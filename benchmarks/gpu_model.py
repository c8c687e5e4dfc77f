"""What gpu.py trains: Qwen2-VL in its published configurations with random weights, and rows of drawn lengths."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from omni2vec.data.parts import probe
from omni2vec.data.types import Blob, Item, Limits, Part, Text
from omni2vec.model.backbones.qwen_vl import QwenVL
from omni2vec.model.backbones.tiny import processor, tokenizer
from omni2vec.model.embedder import Embedder, Fixed, Settings
from omni2vec.model.lora import Lora, attach
from omni2vec.model.quantize import Quantized, quantize
from omni2vec.model.template import Template
from packing import MIXES, SMALL, WORDS, Pairs


@dataclass(frozen=True)
class Size:
    """Of the language model and, from depth on, of the vision tower. budget: tokens of our packed rows."""

    width: int
    mlp: int
    layers: int
    heads: int
    key_heads: int
    words: int
    tied: bool
    budget: int
    sections: tuple[int, int, int] = (16, 24, 24)  # of the rotary dimensions: time, height, width
    depth: int = 32
    vision: int = 1280
    vision_heads: int = 16
    mlp_ratio: int = 4
    patch: int = 14

    @property
    def merged(self) -> int:
        """Pixels of a media token's side."""
        return 2 * self.patch


# config.json of Qwen/Qwen2-VL-2B-Instruct and Qwen/Qwen2-VL-7B-Instruct (arXiv:2409.12191).
SIZES = {
    "2b": Size(1536, 8960, 28, 12, 2, 151936, True, 8192),
    "7b": Size(3584, 18944, 28, 28, 4, 152064, False, 8192),
    "miniature": Size(
        64, 192, 2, 4, 2, 800, True, 512, sections=(4, 2, 2), depth=2, vision=64, vision_heads=2, mlp_ratio=2, patch=4
    ),
}


def build(
    name: str, mode: str, device: torch.device, low: bool, dora: bool = False, quantized: Quantized | Literal[""] = ""
) -> Embedder:
    """A random model of that size on the device. lora: frozen weights, in bfloat16 if `low`, under float32 adapters
    that are not zero. full: everything trains, float32 (7B in bfloat16, for it would not fit)."""
    import transformers as hf

    size = SIZES[name]
    tok = tokenizer([" ".join(WORDS)] * 5, 800)
    limits = Limits(4096, max_pixels=1 << 24, min_pixels=size.merged**2)
    half = low and (mode == "lora" or name == "7b")
    torch.manual_seed(0)
    with torch.device(device):
        model = hf.AutoModelForImageTextToText.from_config(
            _config(size, tok), dtype=torch.bfloat16 if half else torch.float32
        )
    whole = processor("qwen2_vl", tok, size.patch, limits, 0.0, 0.0)
    template = Template.of(whole)
    settings = Settings(scale=Fixed(50.0), limits=limits)
    embedder = Embedder(QwenVL(model, whole, template), template, settings).to(device)
    if mode == "full":
        return embedder
    if quantized:
        embedder = quantize(embedder, quantized, compute=torch.bfloat16 if low else None)
    embedder = attach(embedder, Lora(rank=16, dora=dora, quantized=quantized))
    with torch.no_grad():
        for parameter_name, parameter in embedder.named_parameters():
            if "lora_B" in parameter_name:  # at zero, half of the gradients would be zero as well
                parameter.normal_(std=0.02)
    return embedder


def _config(size: Size, tok: object) -> object:
    import transformers as hf

    ids = {n: tok.convert_tokens_to_ids(f"<|{t}|>") for n, t in (  # type: ignore[attr-defined]
        ("image_token_id", "image_pad"), ("video_token_id", "video_pad"),
        ("vision_start_token_id", "vision_start"), ("vision_end_token_id", "vision_end"),
    )}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(size.sections)}
    text = {
        "vocab_size": size.words, "hidden_size": size.width, "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers, "num_attention_heads": size.heads, "num_key_value_heads": size.key_heads,
        "max_position_embeddings": 32768, "rope_parameters": rope, "tie_word_embeddings": size.tied,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    vision = {
        "depth": size.depth, "embed_dim": size.vision, "hidden_size": size.width, "num_heads": size.vision_heads,
        "mlp_ratio": size.mlp_ratio, "patch_size": size.patch, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    return hf.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=size.tied, **ids)


@dataclass(frozen=True)
class Rows(Pairs):
    """Pairs of packing.py whose pictures are JPEGs of few details: quick to make and decode, at any size."""

    merged: int = 28

    @cached_property
    def items(self) -> list[Item]:
        draw, shares = random.Random(self.seed), {**MIXES, **SMALL}[self.mix]
        kinds = [kind for share, kind in shares for _ in range(round(share * 2 * self.size))]
        kinds = (kinds + [shares[0][1]] * (2 * self.size))[: 2 * self.size]
        draw.shuffle(kinds)
        return [
            Item((self._part(kind, draw.randint(low, high), draw),), str(i))
            for i, (kind, low, high) in enumerate(kinds)
        ]

    def _part(self, kind: str, tokens: int, draw: random.Random) -> Part:
        from PIL import Image

        if kind == "text":
            return Text(" ".join(draw.choice(WORDS) for _ in range(tokens - 8)))
        if kind != "picture":
            raise ValueError(f"mix {self.mix!r} has {kind}s; gpu.py takes texts and pictures")
        high = round(tokens**0.5)
        noise = np.random.default_rng(draw.randrange(1 << 30)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((round(tokens / high) * self.merged, high * self.merged)).save(file, "JPEG")
        return probe("image", Blob(file.getvalue()), "noise")
