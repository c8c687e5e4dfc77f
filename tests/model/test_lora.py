"""LoRA's variants, and adapters on a base in 4 or 8 bits."""

import importlib.util
import json

import pytest
import torch
import torch.nn.functional as F
from omni2vec.model.embedder import Embedder
from omni2vec.model.lora import Lora, attach, merged
from omni2vec.model.quantize import kind_of, quantize
from omni2vec.train.engine import Local
from omni2vec.train.optim import AdamW

from .small import mixed, tiny

bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def vectors(embedder, count=4):
    return embedder.encode_items(mixed(count, video=False))


def learned(embedder, lr=0.05):
    """Adapters that are no longer nothing: one step down on some loss."""
    prompts = embedder.prompts(mixed(4, video=False))
    inputs = embedder.format.collate(prompts, [embedder.limits] * len(prompts))
    (embedder.train()(inputs).vectors[:2] * embedder(inputs).vectors[2:]).sum().backward()
    with torch.no_grad():
        for p in embedder.parameters():
            if p.grad is not None:
                p -= lr * p.grad / p.grad.norm().clamp(min=1e-9)
    return embedder.eval()


@pytest.mark.parametrize("variant", [{"rslora": True}, {"dora": True}])
def test_a_variant_starts_as_the_model_and_merges_into_what_it_learned(variant):
    before = vectors(tiny())
    adapted = attach(tiny(), Lora(rank=4, **variant))
    assert torch.allclose(vectors(adapted), before, atol=1e-5)
    trained = vectors(learned(adapted))
    assert (trained - before).abs().max() > 1e-3
    assert torch.allclose(vectors(merged(adapted)), trained, atol=1e-5)


def test_rslora_scales_by_the_root_of_the_rank():
    layers = [
        next(m for n, m in attach(tiny(), Lora(rank=16, alpha=8.0, rslora=on)).named_modules() if n.endswith("q_proj"))
        for on in (False, True)
    ]
    assert [x.scaling["default"] for x in layers] == [0.5, 2.0]


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match=r"lora.quantized='fp4'; expected 'nf4' or 'int8'"):
        Lora(quantized="fp4")


def test_dora_on_a_rounded_base_is_refused():
    with pytest.raises(ValueError, match="dora with quantized='nf4' cannot be merged exactly"):
        Lora(quantized="nf4", dora=True)


def test_attaching_to_a_base_that_was_not_rounded_says_what_to_call():
    with pytest.raises(ValueError, match=r"full precision: call quantize\(embedder, lora.quantized\) before attach"):
        attach(tiny(), Lora(quantized="nf4"))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_without_bitsandbytes_the_error_names_what_to_install():
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        quantize(tiny(), "nf4")


@pytest.mark.parametrize("memory", ["all", "boundaries"])
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_a_frozen_base_in_half_precision_trains_float32_adapters_under_autocast(kind, memory):
    """Rounded to bfloat16, the gradient keeps its direction; the weights that learn stay float32."""
    found = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        adapted = attach(tiny(kind), Lora(rank=4)).train()
        with torch.no_grad():
            for n, p in adapted.named_parameters():
                if "lora_B" in n:
                    p.normal_(std=0.05)
        engine = Local(adapted, AdamW(), precision)
        engine.checkpointing(memory == "boundaries")
        prompts = adapted.prompts(mixed(6))
        inputs = adapted.format.collate(prompts, [adapted.limits] * len(prompts))
        with engine.accumulating():
            encoded = engine.embed(inputs)
            engine.backward((encoded.vectors[:3] * encoded.vectors[3:]).sum())
        gradient = torch.cat([p.grad.flatten() for p in engine.parameters])
        found[precision] = (encoded.vectors.detach(), gradient, {p.dtype for p in engine.parameters})
        tower = {p.dtype for p in adapted.base.groups()["tower"] if p.ndim > 1}
        assert tower == {torch.bfloat16 if precision == "bf16" else torch.float32}
    (exact, slope, _), (vectors, rounded, dtypes) = found["fp32"], found["bf16"]
    assert dtypes == {torch.float32} and rounded.dtype == vectors.dtype == torch.float32
    assert F.cosine_similarity(vectors, exact).min() > 0.999
    assert F.cosine_similarity(rounded, slope, dim=0) > 0.99


@pytest.mark.installed
@bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_rounded_base_keeps_only_the_language_model_s_maps_in_few_bits(kind):
    plain = tiny()
    before = vectors(plain)
    rounded = quantize(plain, kind)
    packed = {n for n, p in rounded.named_parameters() if p.dtype in (torch.uint8, torch.int8)}
    assert kind_of(rounded.base.model) == kind
    assert len(packed) == 2 * 7 and all("language_model" in n for n in packed)
    assert not any(p.requires_grad for n, p in rounded.named_parameters() if n in packed)
    close = F.cosine_similarity(vectors(rounded), before)
    assert close.min() > {"nf4": 0.9, "int8": 0.99}[kind] and not torch.equal(vectors(rounded), before)


@pytest.mark.installed
@bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_on_a_rounded_base_trains_and_merges_into_full_weights(kind):
    adapted = attach(quantize(tiny(), kind), Lora(rank=4, quantized=kind))
    start = vectors(adapted)
    trained = vectors(learned(adapted))
    assert (trained - start).abs().max() > 1e-3
    whole = merged(adapted)
    assert kind_of(whole.base.model) is None and not any("lora" in n for n, _ in whole.named_parameters())
    assert all(p.dtype == torch.float32 for p in whole.parameters())
    # int8 rounds activations too, which full weights do not.
    least = {"nf4": 0.999999, "int8": 0.999}[kind]
    assert F.cosine_similarity(vectors(whole), trained).min() > least


@pytest.mark.installed
@bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_saved_adapter_finds_its_base_rounded_as_it_was_trained(kind, tmp_path):
    tiny().save(tmp_path / "base")
    base = Embedder.load(tmp_path / "base")
    trained = learned(attach(quantize(base, kind), Lora(rank=4, quantized=kind)))
    trained.save(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "omni2vec.json").read_text())["quantized"] == kind
    again = Embedder.load(tmp_path / "adapter")
    assert kind_of(again.base.model) == kind
    assert torch.allclose(vectors(again), vectors(trained), atol=1e-5)
    merged(again).save(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    assert torch.allclose(vectors(Embedder.load(tmp_path / "whole")), vectors(again), atol=1e-5)


@pytest.mark.installed
@bitsandbytes
def test_a_rounded_model_without_adapter_is_not_saved_as_one():
    with pytest.raises(ValueError, match="in nf4"):
        quantize(tiny(), "nf4").save("nowhere")
