"""Counted operations: equal to torch's own counter on small models, to a published table on large ones."""

import time
from dataclasses import replace

import pytest
import torch
import transformers as hf
from omni2vec.data.types import Limits
from omni2vec.model.backbones.qwen_vl import QwenVL
from omni2vec.model.embedder import Embedder, Settings, freeze
from omni2vec.model.flops import Flops, count, counter, model_flops, rates
from omni2vec.model.lora import Lora, attach
from omni2vec.model.types import Inputs
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .small import KINDS, mixed, tiny

# The counter sees the rotary tables, made by a product of positions with frequencies; ours leaves them out.
TABLES = ("rotary_emb", "rotary_pos_emb")


def row(embedder, count=8, seed=0):
    prompts = embedder.prompts(mixed(count, seed))
    return embedder.format.collate(prompts, [embedder.limits] * len(prompts))


def counted(run):
    """What torch's counter saw of `run`, rotary tables apart. Attention as two plain products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    found = counter.get_flop_counts()
    tables = sum(sum(ops.values()) for name, ops in found.items() if name.rsplit(".", 1)[-1] in TABLES)
    return counter.get_total_flops() - tables


def whole(embedder):
    """The embedder with attention over whole squares: the counter does not know that half of a causal one is masked."""
    return Embedder(embedder.backbone, embedder.template, replace(embedder.settings, attention="bidirectional"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_of_a_mixed_row_is_counted_as_torch_counts_it(kind):
    embedder = whole(tiny(kind))
    inputs = row(embedder)
    flops = count(embedder, inputs)
    assert min(flops.tower, flops.projector, flops.language) > 0
    assert flops.total == counted(lambda: embedder(inputs))


def test_logits_are_counted_where_there_are_labels():
    embedder = whole(tiny())
    inputs = row(embedder, 1)
    labels = inputs.labels.clone()
    labels[:3] = 5
    inputs = replace(inputs, labels=labels, groups=(0,))
    terms = {"next": (frozenset({0}), lambda logits, labels: (logits.sum(), 3))}
    flops = count(embedder, inputs)
    assert flops.head == 2 * 3 * embedder.width * embedder.base.model.lm_head.out_features
    assert flops.total == counted(lambda: embedder(inputs, terms))


def test_lora_s_products_are_counted_apart():
    plain = tiny()
    inputs = row(plain)
    before = count(whole(plain), inputs)
    adapted = attach(whole(plain), Lora(rank=4, tower=True))
    after = count(adapted, inputs)
    assert replace(after, adapter=0.0) == before
    assert after.total == counted(lambda: adapted(inputs))


def test_causal_attention_has_half_of_the_square():
    embedder = tiny()
    inputs = row(embedder)
    square, half = count(whole(embedder), inputs), count(embedder, inputs)
    squares = sum(n * n for n in inputs.lengths)
    assert square.language - half.language == 2 * embedder.width * squares * 2  # two layers
    assert square.tower == half.tower


def test_a_prefix_sees_itself_and_its_answer_is_causal():
    embedder = tiny()
    prefixed = Embedder(embedder.backbone, embedder.template, Settings(pooling="mean", attention="prefix"))
    inputs = replace(row(embedder, 1), lengths=(30,), prefix=(20,), media={})
    linear = 30 * rates(embedder).token
    assert count(prefixed, inputs).language - linear == 2 * 4 * embedder.width * (400 + 200 + 50)


def test_a_window_caps_what_a_token_sees():
    config = hf.MistralConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    embedder = text_model(hf.MistralForCausalLM(config))
    short, long = (replace(row_of(n), lengths=(n,), prefix=(n,)) for n in (8, 64))
    attention = [count(embedder, i).language - len(i.ids) * rates(embedder).token for i in (short, long)]
    assert attention == [2 * 4 * 32 * 32, 2 * 4 * 32 * (8 * 64 - 32)]


def test_a_token_meets_only_the_experts_that_are_chosen_for_it():
    sizes = {"vocab_size": 100, "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "decoder_sparse_step": 1, "mlp_only_layers": []}
    one, two = (
        rates(
            text_model(
                hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(num_experts=8, num_experts_per_tok=k, **sizes, **heads))
            )
        )
        for k in (1, 2)
    )
    assert two.token - one.token == 2 * 3 * 32 * 16


def text_model(model):
    """As much of an embedder as counting needs: it reads modules and configuration, never weights."""
    embedder = tiny()
    embedder.backbone.model = model
    embedder.backbone.__class__ = type("Text", (torch.nn.Module,), {"groups": lambda self: {}})
    return embedder


def row_of(tokens):
    none = torch.full((tokens,), -100)
    return Inputs(none, (tokens,), (tokens,), none[None], none > 0, none)


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ("all", (3, 3, 3)),
        ("frozen tower", (1, 1, 3)),
        ("projector", (1, 3, 2)),
        ("lora", (1, 1, 2)),
        ("none", (1, 1, 1)),
    ],
)
def test_the_backward_costs_what_is_trained(trained, expected):
    embedder = tiny()
    if trained == "frozen tower":
        freeze(embedder, ["tower", "projector"])
    if trained == "projector":
        freeze(embedder, ["tower", "language"])
    if trained == "none":
        freeze(embedder, ["tower", "projector", "language"])
    if trained == "lora":
        embedder = attach(embedder, Lora(rank=2))
    parts = [model_flops(Flops(**{part: 10.0}), embedder) / 10 for part in ("tower", "projector", "language")]
    assert tuple(parts) == expected
    assert model_flops(Flops(adapter=1.0), embedder) == 3


def test_a_trained_model_s_step_is_counted_as_torch_counts_it():
    """Full training: three forwards, but for the gradient of the pixels, which nobody wants."""
    embedder = whole(tiny()).train()
    inputs = row(embedder)
    embed = embedder.base.tower.patch_embed.proj
    patches = len(inputs.media["image_patches"]) + len(inputs.media["video_patches"])
    pixels = 2 * patches * embed.weight.numel()
    step = counted(lambda: embedder(inputs).vectors.sum().backward())
    assert model_flops(count(embedder, inputs), embedder) - pixels == step
    assert counter(embedder)(inputs) - pixels == step


# Qwen2-VL as published: width, width of the MLP, layers, heads, heads of keys and values, words.
PUBLIC = {"2b": (1536, 8960, 28, 12, 2, 151936), "7b": (3584, 18944, 28, 28, 4, 152064)}


def public(size):
    """An embedder of the published size, on the meta device: shapes without weights."""
    small = tiny()
    width, mlp, layers, heads, kv, words = PUBLIC[size]
    text = {
        "vocab_size": words, "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "tie_word_embeddings": size == "2b",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": width, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
    config = hf.Qwen2VLConfig(text_config=text, vision_config=vision)
    with torch.device("meta"):
        model = hf.Qwen2VLForConditionalGeneration(config)
    return Embedder(QwenVL(model, small.backbone.processor, small.template), small.template, Settings(limits=Limits()))


# Milliseconds at 798 TFLOP/s of a text of 32 tokens, a picture of 350 with 40 of text, one of 1,280 with 40, and eight
# of 350 with 40, from formulas of the published dimensions, worked out apart from this code.
TABLE = {"2b": (0.11, 3.94, 18.1, 31.4), "7b": (0.52, 9.07, 35.6, 69.7)}


@pytest.mark.parametrize("size", TABLE)
def test_at_the_published_sizes_it_gives_the_known_costs(size):
    costs = rates(public(size))
    samples = [(32, []), (390, [(1, 28, 50)]), (1320, [(1, 64, 80)]), (2840, [(1, 28, 50)] * 8)]
    for (tokens, grids), expected in zip(samples, TABLE[size], strict=True):
        media = {"image_grid": torch.tensor(grids)} if grids else {}
        flops = costs.count(replace(row_of(tokens), media=media))
        assert flops.total / 798e9 == pytest.approx(expected, rel=0.012, abs=0.005)
    assert flops.tower + flops.projector == pytest.approx({"2b": 2.08, "7b": 0.44}[size] * flops.language, rel=0.01)


def test_a_row_is_counted_in_under_a_millisecond():
    embedder = tiny("qwen2_5_vl")
    cost, inputs = counter(embedder), row(embedder, 36)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        cost(inputs)
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3
