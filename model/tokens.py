"""Embedding tokens: K special tokens at the tail of every prompt, whose last states a vector is made of (ReMatch).

The last of them is pooled, and objectives may go by all (train/objectives/orthogonality.py). They are ordinary tokens
of the tokenizer and ordinary rows of the embeddings, so a release is the same function in every reader.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.counter import bits
from ..data.types import Item, Limits, Prompted

if TYPE_CHECKING:
    from .embedder import Embedder

_SPREAD = 0.1  # of a new row around the end token's, as a share of its size: cosines of .99 between new rows


def names(count: int) -> tuple[str, ...]:
    """The tokens, first to last."""
    return tuple(f"<|emb_{i}|>" for i in range(count))


def ids(embedder: Embedder) -> list[int]:
    """Their numbers in the tokenizer; none where the embedder has none."""
    if not embedder.settings.tokens:
        return []
    found: list[int] = _tokenizer(embedder.backbone).convert_tokens_to_ids(list(names(embedder.settings.tokens)))
    return found


def with_tokens(embedder: Embedder, count: int) -> Embedder:
    """The embedder with `count` embedding tokens behind whatever its prompts end in, over the same model, in place.

    New rows start as the end token's with a little of their own, the same whenever they are made from one base. They
    learn where the language model does; call this before adapters are attached, which then train these rows beside
    them. Raises ValueError for another number than it has, an adapter, attention that is not causal, or a tokenizer
    that ends every text in a token of its own.
    """
    from .backbones.qwen_vl import QwenVL
    from .backbones.text import TextLM
    from .embedder import remade

    settings, backbone = embedder.settings, embedder.backbone
    if settings.tokens == count:
        return embedder
    if settings.tokens:
        raise ValueError(
            f"tokens={count}: this embedder has {settings.tokens} embedding tokens, which it was made with"
        )
    if embedder.adapter is not None:
        raise ValueError(
            f"tokens={count}: this embedder's adapter was made without them; merge it in first "
            "(omni2vec.model.lora.merged), or give the stage lora=Lora(...), which does"
        )
    if settings.attention != "causal":
        raise ValueError(f"tokens={count} with attention={settings.attention!r}: embedding tokens need 'causal'")
    if not isinstance(backbone, QwenVL | TextLM):
        raise ValueError(f"tokens={count}: {type(backbone).__name__} has no tokenizer that tokens can be added to")
    add(backbone, count)
    template = replace(embedder.template, tail=embedder.template.tail + "".join(names(count)))
    made = backbone.under(template)
    out = remade(embedder, replace(settings, tokens=count), None, made, template)
    probe = made.format.segments([Prompted(Item.text("a"), "query")], [Limits()])[0]
    if probe.ids[: probe.prefix][-count:] != ids(out):
        raise ValueError(
            f"tokens={count}: the tokenizer ends every text in a token of its own, so they would not be the last; "
            "use a template that writes its special tokens itself (Template.specials=False)"
        )
    return out


def add(backbone: Any, count: int) -> None:
    """Tokens and rows that are not there yet, in place; nothing where the tokenizer has them all, as a saved one has.

    A head that is not tied to the embeddings gets rows of zeros, if it has to grow: no label ever names them.
    """
    from transformers import AddedToken

    model, tokenizer = backbone.model, _tokenizer(backbone)
    missing = [name for name in names(count) if name not in tokenizer.get_vocab()]
    if not missing:
        return
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError(f"tokens={count}: the tokenizer has no end token, from which new ones start")
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in missing], special_tokens=True)
    new: list[int] = tokenizer.convert_tokens_to_ids(missing)
    size = model.get_input_embeddings().weight.shape[0]
    if max(new) >= size:  # many models have more rows than tokens
        model.resize_token_embeddings(max(new) + 1, mean_resizing=False)
    with torch.no_grad():
        head = model.get_output_embeddings()
        table = model.get_input_embeddings().weight
        if head is not None and head.weight is not table:
            head.weight[size:] = 0
            if head.bias is not None:
                head.bias[size:] = 0
        row = table[end].detach().float().cpu()
        for name, number in zip(missing, new, strict=True):
            table[number] = (row + _SPREAD * row.square().mean().sqrt() * _noise(name, len(row))).to(table)


def _noise(name: str, width: int) -> Tensor:
    """Uniform numbers of mean 0 and variance 1, named by the token. A bit generator's stream never changes."""
    raw = np.random.Philox(key=bits("embedding token", name)).random_raw(width)
    uniform = torch.from_numpy((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    return ((2 * uniform - 1) * 3**0.5).float()


def _tokenizer(backbone: Any) -> Any:
    """A processor holds its tokenizer; a language model's processor is one."""
    return getattr(backbone.processor, "tokenizer", backbone.processor)
