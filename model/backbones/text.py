"""Any decoder or encoder language model: the stock transformers class, called on packed rows where it can be.

A class can be packed if it hands the segments down to its attention and takes positions. Names do not tell, so it is
measured: when a model is loaded, two short segments go through it packed and one by one, and only equal states admit
packing. Every other model runs on a padded batch of the same segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from inspect import signature
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.types import Audio, Cost, DataError, Image, Limits, Prompted, Video
from ..attention import LANGUAGE, Segments, register
from ..template import Template
from ..types import Attention, Inputs, Towers
from .segments import Medium, Segment, Tokens

MEASURED_WINDOW = 1024  # tokens; a longer sliding window is not tried out, as that would cost seconds


class TextMedia:
    """A language model sees no media."""

    marks: dict[str, str] = {}  # noqa: RUF012 (never written to)
    placeholders: dict[str, str] = {}  # noqa: RUF012

    def fit(self, part: Image | Video | Audio, limits: Limits, share: float) -> Medium:
        raise DataError(f"a language model takes text alone, and this Item holds {type(part).__name__.lower()}")

    def tokens(self, medium: Medium) -> int:
        return 0

    def spell(self, medium: Medium) -> str:
        return ""


class TextFormat:
    """Counts and collates for a language model. Pickled to data workers."""

    def __init__(self, tokenizer: Any, template: Template, longest: int, mask_instruction: bool = False) -> None:
        """longest: positions that the model has; Limits.max_tokens never goes beyond."""
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer: save its tokenizer.json and load again"
            )
        self.template = template
        self.longest = longest
        self.tokens = Tokens(tokenizer, TextMedia(), mask_instruction, template.specials)

    def segments(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Segment]:
        capped = [replace(x, max_tokens=min(x.max_tokens, self.longest)) for x in limits]
        return self.tokens.segments([self.template.render(p) for p in prompts], prompts, capped)

    def count(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Cost]:
        return [s.cost() for s in self.segments(prompts, limits)]

    def collate(
        self, prompts: Sequence[Prompted], limits: Sequence[Limits], dummies: Sequence[str] = (), skip: bool = False
    ) -> Inputs:
        if others := [d for d in dummies if d != "text"]:
            raise ValueError(f"a language model has no tower for {', '.join(others)}")
        segments = self.segments(prompts, limits) + [Segment([0], [True], 1, []) for _ in dummies]
        lengths = tuple(len(s.ids) for s in segments)
        labels = torch.full((sum(lengths),), -100, dtype=torch.int64)
        for start, s in zip(accumulate((0, *lengths)), segments, strict=False):
            if len(s.ids) > s.prefix:
                labels[start + s.prefix - 1 : start + len(s.ids) - 1] = torch.tensor(s.ids[s.prefix :])
        return Inputs(
            ids=torch.tensor([t for s in segments for t in s.ids], dtype=torch.int64),
            lengths=lengths,
            prefix=tuple(s.prefix for s in segments),
            positions=_positions(lengths),
            pooled=torch.tensor([p for s in segments for p in s.pooled], dtype=torch.bool),
            labels=labels,
            keys=tuple(p.key for p in prompts) + ("",) * len(dummies),
            groups=tuple(p.group for p in prompts) + (-1,) * len(dummies),
            dummies=len(dummies),
        )


class TextLM(nn.Module):
    """A Backbone over a stock causal language model (with its head) or a headless encoder.

    first: the position of a segment's first token in a packed row; None where the class cannot be packed.
    own_logits: whether `logits` are the model's own.
    natural: how the class attends when it is left alone, which is all that it can do where it cannot be packed.
    """

    def __init__(self, model: Any, tokenizer: Any, template: Template, mask_instruction: bool = False) -> None:
        super().__init__()
        register()
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"model_type {model.config.model_type!r} is an encoder and a decoder; omni2vec takes either alone"
            )
        self.model = model
        self.processor = tokenizer
        self.natural: Attention = "causal"
        self.first: int | None = None
        self.own_logits = False
        with torch.no_grad():
            was = model.training
            model.eval()
            self._measure()
            model.train(was)
        positions = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)
        longest = min(positions - (self.first or 0), int(tokenizer.model_max_length))
        self.format = TextFormat(tokenizer, template, longest, mask_instruction)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        template: Template,
        dtype: torch.dtype | None = None,
        mask_instruction: bool = False,
        *,
        trust_remote_code: bool = False,
    ) -> TextLM:
        """From a checkpoint folder or hub name, with its language-model head if the checkpoint has one."""
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        causal = any(name.endswith("ForCausalLM") for name in config.architectures or ())
        missing: set[str] = set()
        for auto in (AutoModelForCausalLM, AutoModel) if causal else (AutoModel,):
            model, found = auto.from_pretrained(
                str(folder),
                dtype=dtype or torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
            missing = {key for key in found["missing_keys"] if "pooler" not in key}  # BERT's, which nothing reads
            if not missing:
                tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
                return cls(model, tokenizer, template, mask_instruction)
        raise ValueError(
            f"{folder}: {len(missing)} weights are missing, {min(missing)} among them; was the copy cut short?"
        )

    def under(self, template: Template) -> TextLM:
        """The same model, whose prompts are another template's; nothing is measured again."""
        out, inside = copy(self), self.format
        out.format = TextFormat(self.processor, template, inside.longest, inside.tokens.mask_instruction)
        return out

    @property
    def base(self) -> Any:
        return self.model.base_model

    @property
    def width(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def packed(self) -> bool:
        return self.first is not None

    def towers(self, inputs: Inputs) -> Towers:
        return Towers()

    def embed(self, inputs: Inputs, towers: Towers, attention: Attention) -> Tensor:
        """(T, width): the base model's normed last hidden state."""
        segments = Segments(inputs.lengths, inputs.prefix, attention)
        if self.first is not None:
            return self._packed(inputs.ids, inputs.positions, segments, self.first)
        if attention != self.natural and (attention, self.natural) != ("prefix", "bidirectional"):
            raise ValueError(
                f"{type(self.model).__name__} cannot be packed, so it attends in its own way, {self.natural!r}; "
                f"attention={attention!r} was asked for"
            )
        if self.natural == "bidirectional" and inputs.lengths != inputs.prefix:
            raise ValueError(f"an answer would leak into its own vector: {type(self.model).__name__} sees both ways")
        return self._padded(inputs.ids, inputs.lengths)

    def _packed(self, ids: Tensor, positions: Tensor, segments: Segments, first: int) -> Tensor:
        extra = {"use_cache": False} if "use_cache" in _arguments(self.base) else {}
        out = self.base(input_ids=ids[None], position_ids=positions + first, segments=segments, **extra)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def _padded(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """One row a segment, padded on the right."""
        rows = nn.utils.rnn.pad_sequence(ids.split(list(lengths)), batch_first=True, padding_value=self._pad)
        real = torch.arange(rows.shape[1], device=ids.device) < torch.tensor(lengths).to(ids.device)[:, None]
        extra = {"use_cache": False} if "use_cache" in _arguments(self.base) else {}
        out = self.base(input_ids=rows, attention_mask=real.long(), **extra)
        hidden: Tensor = out.last_hidden_state[real]
        return hidden

    @property
    def _pad(self) -> int:
        return int(self.processor.pad_token_id or 0)

    def _measure(self) -> None:
        """Finds `natural`, `own_logits` and `first`, and leaves the attention that they need in place."""
        config = self.model.config
        window = getattr(config.get_text_config(), "sliding_window", None) or 0
        lengths = (window + 3 if 0 < window <= MEASURED_WINDOW else 11, 5)  # the first reaches beyond the window
        device = next(self.model.parameters()).device
        ids = torch.arange(sum(lengths), device=device) * 7 % (config.get_text_config().vocab_size - 1)
        ids[ids == self._pad] += 1
        alone = torch.cat([self._padded(x, [len(x)]) for x in ids.split(list(lengths))])
        changed = self._padded(torch.cat([ids[: lengths[0] - 1], ids[:1]]), lengths[:1])
        near = slice(lengths[0] - 3, lengths[0] - 1)  # the two tokens before the changed one
        self.natural = "causal" if torch.equal(changed[near], alone[near]) else "bidirectional"
        if self.model.get_output_embeddings() is not None:
            own = self.model(input_ids=ids[None, : lengths[0]]).logits[0]
            self.own_logits = own.shape[-1:] == (config.vocab_size,) and _alike(self._head(alone[: lengths[0]]), own)
        if "position_ids" not in _arguments(self.base):
            return
        stock = config._attn_implementation
        segments = Segments(lengths, lengths, self.natural)
        try:
            self.model.set_attn_implementation(LANGUAGE)
            for first in (0, self._pad + 1):  # RoBERTa counts from behind its padding index
                packed = self._packed(ids, _positions(lengths).to(device), segments, first)
                if _alike(packed, alone):
                    self.first = first
                    return
        except (ValueError, TypeError, NotImplementedError, IndexError):
            pass  # the class has no place for our attention, or wants more of it than it has
        self.model.set_attn_implementation(stock)

    def logits(self, hidden: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        if head is None:
            raise ValueError(
                f"{type(self.model).__name__} has no language-model head, so no next-token loss; "
                "start from a checkpoint that has one, or drop the NextToken objective"
            )
        if not self.own_logits:
            raise NotImplementedError(
                f"{type(self.model).__name__} does more to its logits than its head and a known scale or cap; "
                "no next-token loss for it yet"
            )
        return self._head(hidden)

    def _head(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.model.get_output_embeddings()(hidden)
        config = self.model.config.get_text_config()
        out = out * (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        return out if cap is None else torch.tanh(out / cap) * cap

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by part. A head tied to the embeddings belongs to the language model."""
        named: dict[str, list[nn.Parameter]] = {"tower": [], "projector": [], "language": [], "head": []}
        inside = {id(p) for p in self.base.parameters()}
        for parameter in self.model.parameters():
            named["language" if id(parameter) in inside else "head"].append(parameter)
        return named


def _positions(lengths: Sequence[int]) -> Tensor:
    """(1, T): from 0 in every segment."""
    return torch.cat([torch.arange(n) for n in lengths])[None] if lengths else torch.zeros(1, 0, dtype=torch.int64)


def _arguments(module: nn.Module) -> Mapping[str, Any]:
    return signature(module.forward).parameters


def _alike(a: Tensor, b: Tensor) -> bool:
    limit = 1e-5 if a.dtype in (torch.float32, torch.float64) else 2e-2
    return float((a - b).norm()) <= limit * float(b.norm())
