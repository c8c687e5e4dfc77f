"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the stock transformers classes, called on packed rows.

The language model is called below its head, on embeddings that already hold the tower's features: the tower can run
once and be kept, and no logit is computed that has no label.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import LANGUAGE, TOWER, Segments, register
from ..template import Template
from ..types import Attention, Inputs, Towers
from .patches import Geometry
from .qwen_format import Kind, QwenFormat, QwenMedia

KINDS: tuple[Kind, ...] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class QwenVL(nn.Module):
    """A Backbone over a stock `Qwen*VLForConditionalGeneration` (`model`), with its processor."""

    def __init__(self, model: Any, processor: Any, template: Template, mask_instruction: bool = False) -> None:
        super().__init__()
        register()
        kind = model.config.model_type
        if kind not in KINDS:
            raise ValueError(f"model_type {kind!r} is not one of {', '.join(KINDS)}")
        self.model = model
        self.processor = processor
        self.kind: Kind = kind
        model.set_attn_implementation(LANGUAGE)
        self.tower.config._attn_implementation = TOWER
        vision = model.config.vision_config
        geometry = Geometry(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        per_second = float(vision.tokens_per_second) if kind == "qwen2_5_vl" else 1.0
        media = QwenMedia(kind, geometry, per_second, kind == "qwen3_vl" and _nests(processor))
        self.format = QwenFormat(processor.tokenizer, template, media, mask_instruction)
        images = processor.image_processor
        self.register_buffer("mean", torch.tensor(images.image_mean) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(images.image_std) * 255, persistent=False)

    @classmethod
    def load(
        cls, folder: str | Path, template: Template, dtype: torch.dtype | None = None, mask_instruction: bool = False
    ) -> QwenVL:
        """From a checkpoint folder or hub name, through the stock classes' `from_pretrained`."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype=dtype or torch.float32, use_safetensors=True
        )
        return cls(model, AutoProcessor.from_pretrained(str(folder)), template, mask_instruction)

    def under(self, template: Template) -> QwenVL:
        """The same model, whose prompts are another template's."""
        out, inside = copy(self), self.format
        out.format = QwenFormat(inside.tokenizer, template, inside.media, inside.tokens.mask_instruction)
        return out

    @property
    def base(self) -> Any:
        return self.model.model

    @property
    def tower(self) -> Any:
        return self.model.model.visual

    @property
    def width(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    def _pixels(self, patches: Tensor) -> Tensor:
        """uint8 (n, 3 * rest), channel first in each patch -> normalised, in the tower's dtype."""
        mean, std = (getattr(self, name).to(torch.float32)[:, None] for name in ("mean", "std"))
        shaped = patches.unflatten(1, (3, -1)).to(torch.float32)
        dtype: torch.dtype = next(self.tower.parameters()).dtype
        pixels: Tensor = ((shaped - mean) / std).flatten(1).to(dtype)
        return pixels

    def towers(self, inputs: Inputs) -> Towers:
        """Features of every media token, pictures first, then clips: one call for both."""
        kinds = [k for k in ("image", "video") if f"{k}_patches" in inputs.media]
        if not kinds:
            return Towers()
        pixels = self._pixels(torch.cat([inputs.media[f"{k}_patches"] for k in kinds]))
        out = self.tower(pixels, grid_thw=torch.cat([inputs.media[f"{k}_grid"] for k in kinds]))
        deep = tuple(out.deepstack_features) if self.kind == "qwen3_vl" else ()
        return Towers({"vision": (out.pooler_output, *deep)})

    def embed(self, inputs: Inputs, towers: Towers, attention: Attention) -> Tensor:
        """(T, width): the base model's normed last hidden state."""
        embeds = self.base.get_input_embeddings()(inputs.ids)
        extra: dict[str, Any] = {}
        if towers.features:
            features, *deep = towers.features["vision"]
            rows = torch.cat([inputs.media[f"{k}_rows"] for k in ("image", "video") if f"{k}_rows" in inputs.media])
            embeds = embeds.index_copy(0, rows, features.to(embeds.dtype))
            if self.kind == "qwen3_vl":
                mask = torch.zeros(1, len(inputs.ids), dtype=torch.bool, device=rows.device)
                mask[0, rows] = True
                order = rows.argsort()  # the stock model adds them in the order of the row
                extra = {"visual_pos_masks": mask, "deepstack_visual_embeds": [d[order] for d in deep]}
        out = self.base.language_model(
            inputs_embeds=embeds[None],
            position_ids=inputs.positions[:, None],
            use_cache=False,
            segments=Segments(inputs.lengths, inputs.prefix, attention),
            **extra,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.model.lm_head(hidden)
        return out

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by part. A head tied to the embeddings belongs to the language model."""
        named: dict[str, list[nn.Parameter]] = {"tower": [], "projector": [], "language": [], "head": []}
        for name, parameter in self.model.named_parameters():
            inside = name.split(".")
            if "visual" in inside:
                named["projector" if "merger" in name else "tower"].append(parameter)
            else:
                named["head" if "lm_head" in inside else "language"].append(parameter)
        return named


def _nests(processor: Any) -> bool:
    """Whether the stock processor leaves the template's vision markers around the timed frames of a clip.

    Releases of transformers differ; a model should see what the installed one would feed it.
    """
    import numpy as np
    from transformers.video_utils import VideoMetadata

    side = processor.image_processor.patch_size * processor.image_processor.merge_size * 4
    clip = np.zeros((2, side, side, 3), dtype=np.uint8)
    meta = VideoMetadata(total_num_frames=2, fps=2.0, frames_indices=[0, 1], height=side, width=side, duration=1.0)
    text = "<|vision_start|><|video_pad|><|vision_end|>"
    ids = processor(text=[text], videos=[clip], video_metadata=[meta], do_sample_frames=False)["input_ids"][0]
    start = processor.tokenizer.convert_tokens_to_ids("<|vision_start|>")
    return bool(ids[0] == start)
