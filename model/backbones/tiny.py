"""A real Qwen-VL configuration of a few million parameters, with tokenizer and processor made on the spot.

Saved and loaded like any checkpoint: nothing in the library knows that it is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ...data.types import Events, Example, Item, Limits, Source, Text, Where
from .qwen_format import Kind

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# What stands between the turns of a conversation, one token each: a short caption would else be half template. The
# text is ChatML to the byte.
TURNS = (
    "<|im_start|>system\n", "<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n",
)  # fmt: skip
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(texts: Iterable[str], vocabulary: int = 2048, length: int = 4096) -> Any:
    """A byte-level BPE tokenizer trained on `texts`, with Qwen's special tokens and a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    roles = ["system", "user", "assistant"] * 1000  # in every prompt, in no text: one token each, not eight
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL, *TURNS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(chain(roles, texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[*SPECIAL, *TURNS],
        padding_side="left",
        chat_template=CHAT,
        model_max_length=length,
    )


def config(kind: Kind, tok: Any, size: Tiny) -> Any:
    """The stock configuration class of `kind`, at the size that `size` gives."""
    import transformers as hf

    width, layers, heads, vision = size.width, size.layers, size.heads, size.vision
    depth, patch, init = size.depth, size.patch, size.init
    if width % heads or (width // heads) % 2:
        raise ValueError(f"width={width} must be an even multiple of heads={heads}")
    half = width // heads // 2
    section = (half - 2 * (half // 3), half // 3, half // 3)
    ids = {n: tok.convert_tokens_to_ids(f"<|{t}|>") for n, t in (
        ("image_token_id", "image_pad"), ("video_token_id", "video_pad"),
        ("vision_start_token_id", "vision_start"), ("vision_end_token_id", "vision_end"),
    )}  # fmt: skip
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)}
    text: dict[str, Any] = {
        "vocab_size": len(tok), "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": max(1, heads // 2), "max_position_embeddings": 4096,
        "rope_parameters": rope, "pad_token_id": tok.pad_token_id, "eos_token_id": tok.eos_token_id,
        "bos_token_id": tok.pad_token_id, "tie_word_embeddings": True, "initializer_range": init,
    }  # fmt: skip
    eyes: dict[str, Any] = {
        "depth": depth, "num_heads": max(1, vision // 32), "patch_size": patch, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "initializer_range": init,
    }  # fmt: skip
    common = {**ids, "tie_word_embeddings": True, "initializer_range": init}
    if kind == "qwen2_vl":
        vision_config = {**eyes, "embed_dim": vision, "hidden_size": width, "mlp_ratio": 2}
        return hf.Qwen2VLConfig(text_config=text, vision_config=vision_config, **common)
    eyes |= {"hidden_size": vision, "out_hidden_size": width, "intermediate_size": 2 * vision}
    if kind == "qwen2_5_vl":
        eyes |= {"fullatt_block_indexes": [depth - 1], "window_size": 4 * patch}
        return hf.Qwen2_5_VLConfig(text_config=text, vision_config=eyes, **common)
    text |= {"head_dim": width // heads}
    rope["mrope_interleaved"] = True
    eyes |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [depth // 3, 2 * depth // 3]}
    return hf.Qwen3VLConfig(text_config=text, vision_config=eyes, **common)


def processor(kind: Kind, tok: Any, patch: int, limits: Limits, mean: float, std: float) -> Any:
    """The stock processor class of `kind`."""
    import transformers as hf

    grid: dict[str, Any] = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    if std:
        grid |= {"image_mean": [mean] * 3, "image_std": [std] * 3}
    pixels = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
    frames = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_video_pixels * limits.max_frames}
    videos = hf.Qwen3VLVideoProcessor if kind == "qwen3_vl" else hf.Qwen2VLVideoProcessor
    whole = {"qwen2_vl": hf.Qwen2VLProcessor, "qwen2_5_vl": hf.Qwen2_5_VLProcessor, "qwen3_vl": hf.Qwen3VLProcessor}
    return whole[kind](
        image_processor=hf.Qwen2VLImageProcessor(**grid, size=pixels),
        tokenizer=tok,
        video_processor=videos(**grid, size=frames, cap_pixels_per_frame=True),
        chat_template=CHAT,
    )


@dataclass(frozen=True)
class Tiny:
    """The step that makes a small, random Qwen-VL embedder whose tokenizer is trained on the texts of `texts`.

    Sizes are in the language of the stock configurations: width and layers of the language model, vision and depth of
    the tower. init: standard deviation of the weights; at this size the usual 0.02 gives collapsed vectors.
    mean, std: of pixels, 0 to 1; std 0: the family's own. If pictures share a background, make it the mean: else it is
    most of what a random tower sees, and all pictures get one vector (mean cosine .95 on the synthetic world; .52 so).
    """

    texts: tuple[Source, ...]
    name: str = "tiny"
    kind: Kind = "qwen2_vl"
    width: int = 192
    layers: int = 4
    heads: int = 6
    vision: int = 128
    depth: int = 3
    patch: int = 12
    init: float = 0.06
    mean: float = 0.0
    std: float = 0.0
    vocabulary: int = 2048
    seed: int = 0
    pooling: str = "last"
    scale: float = 50.0
    limits: Limits = field(
        default_factory=lambda: Limits(
            max_tokens=512, max_pixels=16 * 24 * 24, min_pixels=4 * 24 * 24, max_frames=4, max_video_pixels=9 * 24 * 24
        )
    )
    rows: int = 20_000  # of each source, at most, whose texts the tokenizer sees

    def make(self, out: Path, where: Where) -> None:
        """Write the checkpoint into `out`."""
        found = (t for source in self.texts for t in _texts(source, where, self.rows))
        build(self, found).save(out / "model")
        for file in (out / "model").iterdir():
            file.rename(out / file.name)
        (out / "model").rmdir()


def build(tiny: Tiny, texts: Iterable[str]) -> Any:
    """The Embedder that `tiny` describes, with a tokenizer trained on `texts`."""
    import torch
    from transformers import AutoModelForImageTextToText

    from ..embedder import Embedder, Fixed, Settings
    from ..template import Template
    from .qwen_vl import QwenVL

    tok = tokenizer(texts, tiny.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tiny.seed)
        model = AutoModelForImageTextToText.from_config(config(tiny.kind, tok, tiny))
    whole = processor(tiny.kind, tok, tiny.patch, tiny.limits, tiny.mean, tiny.std)
    template = Template.of(whole)
    backbone = QwenVL(model, whole, template)
    settings = Settings(pooling=tiny.pooling, scale=Fixed(tiny.scale), limits=tiny.limits)  # type: ignore[arg-type]
    return Embedder(backbone, template, settings).eval()


def _texts(source: Source, where: Where, most: int) -> Iterator[str]:
    rows = source.open(where)
    for i in range(min(len(rows), most)):
        yield from _said(rows[i])


def _said(example: Example) -> Iterator[str]:
    yield from (example.instruction, example.target_instruction, example.answer)
    for item in (example.query, *example.positives, *example.negatives, *example.fields.values()):
        yield from _words(item)


def _words(item: Item) -> Iterator[str]:
    for part in item.parts:
        if isinstance(part, Text):
            yield part.text
        elif isinstance(part, Events):
            yield from (f"{e.action} {e.text}" for e in part.events)
