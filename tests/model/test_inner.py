"""Vectors of inner layers: what the next block is given, with exact gradients however the graph is kept."""

from dataclasses import replace

import pytest
import torch
from omni2vec.data.types import Item
from omni2vec.model import inner
from omni2vec.model.backbones.text import TextLM
from omni2vec.model.backbones.tiny import tokenizer
from omni2vec.model.compile import compiled
from omni2vec.model.embedder import Embedder, Settings
from omni2vec.model.lora import Lora, attach
from omni2vec.model.template import Template
from omni2vec.train.engine import Local, checkpointing
from omni2vec.train.offload import Shelf
from omni2vec.train.optim import AdamW
from torch import nn
from torch.nn.functional import normalize

from ..train import toy
from .small import KINDS, mixed, tiny

WORDS = ["a red circle above the blue square", "find the image that matches the caption"]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


HEADS = {"Qwen2": {"num_key_value_heads": 2}, "Qwen3": {"num_key_value_heads": 2, "head_dim": 16}}


def text(family, pooling="mean"):
    import transformers as hf

    tok = tokenizer(WORDS * 20, 400)
    config = getattr(hf, family + "Config")(
        vocab_size=len(tok),
        max_position_embeddings=128,
        pad_token_id=0,
        initializer_range=0.1,
        **SIZES | HEADS.get(family, {}),
    )
    torch.manual_seed(0)
    known = (hf.AutoModelForCausalLM if family.startswith("Qwen") else hf.AutoModel).from_config(config)
    backbone = TextLM(known.eval(), tok, Template.of(tok))
    settings = Settings(pooling=pooling, attention=backbone.natural)
    return Embedder(backbone, backbone.format.template, settings).eval()


def collated(embedder, items):
    prompts = embedder.prompts(items)
    return embedder.format.collate(prompts, [embedder.limits] * len(prompts))


def items_of(embedder):
    return mixed(4) if hasattr(embedder.base, "tower") else [Item.text(w * n) for n, w in enumerate(WORDS * 2, 1)]


def stock_states(embedder, inputs, layer):
    """The states that the stock model itself says it has after `layer` blocks, one segment at a time, pooled here."""
    out = []
    if embedder.base.packed:
        embedder.base.model.set_attn_implementation("sdpa")
    for ids in inputs.ids.split(list(inputs.lengths)):
        states = embedder.base.base(input_ids=ids[None], output_hidden_states=True).hidden_states[layer][0]
        out.append(states[-1] if embedder.settings.pooling == "last" else states.mean(0))
    return normalize(torch.stack(out), dim=-1)


@pytest.mark.parametrize(
    ("family", "pooling"), [("Qwen2", "last"), ("Qwen3", "mean"), ("Bert", "mean"), ("MPNet", "mean")]
)
def test_an_inner_layer_is_the_stock_models_own_hidden_state(family, pooling):
    """Qwen2, Qwen3 and BERT run packed, MPNet on padded rows."""
    embedder = text(family, pooling)
    inputs = collated(embedder, items_of(embedder))
    assert embedder.blocks == 3
    with torch.no_grad():
        found = embedder(inputs, None, None, (2, 1)).at
        for layer in (1, 2):
            assert torch.allclose(found[layer], stock_states(embedder, inputs, layer), atol=2e-6)


def test_deepstack_features_are_in_the_layers_behind_which_they_are_added():
    """Qwen3-VL adds visual features behind its first blocks: an inner layer has them, as the next block does."""
    embedder = tiny("qwen3_vl", pooling="mean")
    inputs = collated(embedder, mixed(4)[1:2])
    towers = embedder.base.towers(inputs)
    features, first, *rest = towers.features["vision"]
    changed = replace(towers, features={"vision": (features, first + 1.0, *rest)})
    with torch.no_grad():
        a, b = (embedder(inputs, None, t, (1,)).at[1] for t in (towers, changed))
    assert not torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_a_vision_model_are_the_language_models(kind):
    embedder = tiny(kind)
    assert embedder.blocks == 2
    assert embedder.layer("middle") == 1
    blocks = inner.blocks_of(embedder.base.model)
    assert all(any(b is m for m in embedder.base.base.language_model.modules()) for b in blocks)
    adapted = attach(embedder, Lora(rank=2))
    assert inner.blocks_of(adapted.base.model) == blocks


def gradients(embedder, inputs, layers, keep):
    """Of two chunks' vectors and inner vectors, all forwards before all backwards, as the cached step keeps graphs."""
    embedder.zero_grad()
    torch.manual_seed(3)
    outs = [keep(x, layers) for x in inputs]
    for out in outs:
        root = (out.vectors * torch.linspace(-1, 1, out.vectors.numel()).view_as(out.vectors).double()).sum()
        for at in out.at.values():
            root = root + (at * torch.linspace(1, -2, at.numel()).view_as(at).double()).sum()
        root.backward()
    return {n: p.grad.clone() for n, p in embedder.named_parameters() if p.grad is not None}


def made(name):
    if name == "toy":
        embedder = toy.embedder()
        prompts = embedder.prompts([Item.text("#abc"), Item.text("hello"), Item.text("some words")])
        return embedder, [embedder.format.collate(p, [embedder.limits] * len(p)) for p in (prompts[:1], prompts[1:])]
    if name == "lora":
        embedder = attach(tiny(), Lora(rank=2, dropout=0.2))
    else:
        embedder = tiny(name) if name in KINDS else text(name)
    embedder = embedder.double().train()
    items = items_of(embedder)
    return embedder, [collated(embedder, part) for part in (items[:2], items[2:])]


@pytest.mark.parametrize("name", ["toy", "qwen2_vl", "qwen3_vl", "lora", "Qwen3", "Bert"])
def test_gradients_through_kept_checkpointed_and_offloaded_graphs_are_the_plain_ones(name):
    embedder, inputs = made(name)
    layers = (1,)

    def embed(x, asked):
        return embedder(x, None, None, asked)

    def offloaded(x, asked):
        shelf = Shelf(torch.device("cpu"))
        with torch.autograd.graph.saved_tensors_hooks(shelf.pack, shelf.unpack):
            return embed(x, asked)

    checkpointing(embedder, False)
    plain = gradients(embedder, inputs, layers, embed)
    without = gradients(embedder, inputs, (), embed)
    assert any(not torch.allclose(plain[n], g) for n, g in without.items())  # the inner layer has a part in it
    checkpointing(embedder, True)
    for keep in (embed, offloaded):
        found = gradients(embedder, inputs, layers, keep)
        assert found.keys() == plain.keys()
        for n, g in plain.items():
            assert (found[n] - g).abs().max() <= 1e-12 * max(1.0, float(g.abs().max())), n


def test_no_hook_is_left_behind_a_forward_or_one_that_fails():
    embedder = tiny()
    blocks = inner.blocks_of(embedder.base.model)
    with torch.no_grad():
        embedder(collated(embedder, [Item.text("a")]), None, None, (1,))
    with pytest.raises(RuntimeError), inner.captured(blocks, (1,)):
        raise RuntimeError
    assert not any(m._forward_pre_hooks for m in embedder.modules())


def test_a_compiled_model_has_the_same_inner_layers():
    embedder = tiny()
    inputs = collated(embedder, mixed(3))
    with torch.no_grad():
        before = embedder(inputs, None, None, (1,))
        after = compiled(embedder, "eager")(inputs, None, None, (1,))
    assert torch.allclose(before.at[1], after.at[1], atol=1e-6)
    assert torch.allclose(before.vectors, after.vectors, atol=1e-6)


def test_an_engine_gives_inner_layers_too():
    embedder = tiny()
    inputs = collated(embedder, [Item.text("a"), Item.text("b")])
    engine = Local(embedder, AdamW())
    assert torch.equal(engine.embed(inputs, None, None, (1,)).at[1], embedder(inputs, None, None, (1,)).at[1])


@pytest.mark.parametrize("layer", [0, 2, 5, -1])
def test_a_layer_that_is_none_is_refused_with_the_number_of_blocks(layer):
    embedder = tiny()
    with pytest.raises(ValueError, match=f"layer {layer}: expected 1 to 1, .* of the 2 blocks of Qwen2VL"):
        embedder(collated(embedder, [Item.text("a")]), None, None, (layer,))
    with pytest.raises(ValueError, match="of the 2 blocks"):
        embedder.layer(layer)


def test_a_model_without_blocks_says_that_it_has_no_inner_layers():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = nn.Module()
            self.visual.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    assert inner.blocks_of(Flat()) == ()
    with pytest.raises(ValueError, match="Flat has no inner layers"):
        inner.check((1,), 0, Flat())
