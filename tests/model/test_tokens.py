"""Embedding tokens: at the tail of every prompt, learned, saved, and the same function wherever they are read."""

from dataclasses import replace

import pytest
import torch
from omni2vec.data.types import Item, Limits, Prompted
from omni2vec.model.backbones.text import TextLM
from omni2vec.model.backbones.tiny import tokenizer
from omni2vec.model.embedder import Embedder, Settings, remade
from omni2vec.model.lora import Lora, attach, merged
from omni2vec.model.template import Template
from omni2vec.model.tokens import ids, with_tokens
from omni2vec.train.engine import Local
from omni2vec.train.objectives.orthogonality import Orthogonality
from omni2vec.train.objectives.types import States
from omni2vec.train.optim import AdamW

from .small import KINDS, mixed, tiny

WORDS = ["a red circle above the blue square", "find the image that matches the caption"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def language(tied=True, chat=True, **rest):
    import transformers as hf

    tok = tokenizer(WORDS * 20, 400)
    torch.manual_seed(0)
    config = hf.Qwen3Config(
        vocab_size=len(tok), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.1, tie_word_embeddings=tied,
    )  # fmt: skip
    model = hf.Qwen3ForCausalLM(config).eval()
    template = Template.of(tok) if chat else replace(Template.of(tok), chat="", instruct="front", specials=False)
    return Embedder(TextLM(model, tok, template), template, Settings(**rest)).eval()


def collated(embedder, items, dummies=(), groups=None, answer=""):
    prompts = [
        Prompted(item, key=f"key {i}", group=groups[i] if groups else 0, answer=answer) for i, item in enumerate(items)
    ]
    return embedder.format.collate(prompts, [embedder.limits] * len(prompts), dummies)


def vectors(embedder):
    return embedder.encode_items(mixed(4, video=False) if hasattr(embedder.base, "tower") else words())


def words():
    return [Item.text(w) for w in WORDS]


def apart(rows):
    unit = torch.nn.functional.normalize(rows.detach(), dim=-1)
    return float((unit @ unit.T).tril(-1).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_the_last_of_every_prompt_and_the_last_of_them_is_pooled(kind):
    embedder = with_tokens(tiny(kind), 3)
    inputs = collated(embedder, mixed(4), answer="yes")
    starts = [sum(inputs.lengths[:i]) for i in range(len(inputs.lengths))]
    for start, prefix in zip(starts, inputs.prefix, strict=True):
        assert inputs.ids[start + prefix - 3 : start + prefix].tolist() == ids(embedder)
    with torch.no_grad():
        hidden = embedder.base.embed(inputs, embedder.base.towers(inputs), "causal")
        at = torch.tensor([s + p - 1 for s, p in zip(starts, inputs.prefix, strict=True)])
        assert torch.equal(embedder(inputs).vectors, torch.nn.functional.normalize(hidden[at], dim=-1))


def test_new_rows_start_near_the_end_tokens_differ_and_are_the_same_each_time():
    one, two = with_tokens(tiny(), 4), with_tokens(tiny(), 4)
    table = one.base.model.get_input_embeddings().weight
    new, end = table[ids(one)], table[one.backbone.processor.tokenizer.eos_token_id]
    assert torch.equal(new, two.base.model.get_input_embeddings().weight[ids(two)])
    assert torch.cosine_similarity(new, end[None]).min() > 0.98
    assert apart(new) < 0.9999
    assert one.base.model.get_output_embeddings().weight is table  # still tied


def test_the_rest_of_the_table_and_an_untied_head_stay_as_they_were():
    plain = language(tied=False)
    table, head = (
        m().weight.detach().clone()
        for m in (plain.base.model.get_input_embeddings, plain.base.model.get_output_embeddings)
    )
    grown = with_tokens(plain, 2)
    now = grown.base.model.get_input_embeddings().weight
    assert len(now) == len(table) + 2
    assert torch.equal(now[: len(table)], table)
    of_head = grown.base.model.get_output_embeddings().weight
    assert torch.equal(of_head[: len(head)], head)
    assert not of_head[len(head) :].any()


def test_a_table_with_room_does_not_grow():
    embedder = language()
    embedder.base.model.resize_token_embeddings(500, mean_resizing=False)
    assert len(with_tokens(embedder, 4).base.model.get_input_embeddings().weight) == 500


@pytest.mark.parametrize("make", [tiny, language])
def test_a_checkpoint_keeps_tokens_and_what_their_rows_learned(make, tmp_path):
    embedder = with_tokens(make(), 3)
    with torch.no_grad():
        embedder.base.model.get_input_embeddings().weight[ids(embedder)] += 0.3
    again = Embedder.load(embedder.save(tmp_path / "model"), device="cpu")
    assert (again.settings, again.template) == (embedder.settings, embedder.template)
    assert torch.equal(vectors(again), vectors(embedder))
    assert with_tokens(again, 3) is again
    assert again.digest == embedder.digest


def learned(embedder, lr=0.5):
    """A step down on some loss."""
    inputs = collated(embedder, words())
    root = embedder.train()(inputs).vectors
    (root[0] * root[1]).sum().backward()
    with torch.no_grad():
        for p in embedder.parameters():
            if p.grad is not None:
                p -= lr * p.grad / p.grad.norm().clamp(min=1e-9)
    return embedder.eval()


def test_rows_learn_where_the_language_model_does():
    embedder = with_tokens(tiny(), 2)
    table = embedder.base.model.get_input_embeddings().weight
    before = table.detach().clone()
    assert any(p is table for p in embedder.parts()["language"])
    learned(embedder)
    assert not torch.equal(table[ids(embedder)], before[ids(embedder)])


@pytest.mark.parametrize("make", [tiny, language])
def test_adapters_train_the_new_rows_and_no_other_and_load_and_merge_with_them(make, tmp_path):
    base = Embedder.load(make().save(tmp_path / "base"), device="cpu")
    embedder = attach(with_tokens(base, 3), Lora(rank=2))
    start = vectors(embedder)
    trained = {n: p.shape for n, p in embedder.named_parameters() if p.requires_grad and "lora_" not in n}
    assert list(trained.values()) == [(3, 64)]
    assert set(trained) <= {
        n for n, p in embedder.named_parameters() if any(p is q for q in embedder.parts()["adapter"])
    }
    wanted = vectors(learned(embedder))
    assert (wanted - start).abs().max() > 1e-3
    folder = embedder.save(tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").stat().st_size < 200_000  # no table in it
    assert torch.allclose(vectors(Embedder.load(folder, device="cpu")), wanted, atol=1e-6)
    whole = merged(Embedder.load(folder, device="cpu"))
    assert torch.allclose(vectors(whole), wanted, atol=1e-5)
    assert torch.allclose(vectors(Embedder.load(whole.save(tmp_path / "whole"), device="cpu")), wanted, atol=1e-5)


@pytest.mark.parametrize("make", [tiny, language])
def test_adapters_gradients_of_new_rows_equal_those_of_the_table(make):
    """In float64, with a next-token term through the tied head too."""
    terms = {"n": (frozenset({0}), lambda x, y: (torch.nn.functional.cross_entropy(x, y, reduction="sum"), len(y)))}

    def gradient(embedder, found):
        embedder = embedder.double().train()
        out = embedder(collated(embedder, words(), answer="yes"), terms)
        (out.vectors[0] @ out.vectors[1] + out.local["n"][0]).backward()
        return found(embedder)

    whole = gradient(with_tokens(make(), 3), lambda e: e.base.model.get_input_embeddings().weight.grad[ids(e)])
    rows = gradient(
        attach(with_tokens(make(), 3), Lora(rank=2)),
        lambda e: next(p for n, p in e.named_parameters() if "trainable_tokens" in n).grad,
    )
    assert (whole - rows).abs().max() < 1e-12


def squares(states):
    return states.square().sum(), len(states)


def test_states_are_the_tokens_own_of_the_groups_asked_for_without_dummies_and_failed():
    embedder = with_tokens(tiny(), 2)
    items = [Item.text(f"{w} {i}") for i, w in enumerate(WORDS * 2)]
    inputs = replace(collated(embedder, items, ("image", "text"), groups=(0, 1, 0, 0)), failed=(3,))
    seen = []

    def term(states):
        seen.append(states)
        return squares(states)

    with torch.no_grad():
        out = embedder(inputs, None, None, (), {"a": (frozenset({0}), term), "b": (frozenset({7}), term)})
        hidden = embedder.base.embed(inputs, embedder.base.towers(inputs), "causal")
    starts = [sum(inputs.lengths[:i]) for i in range(4)]
    wanted = torch.stack([hidden[starts[i] + inputs.prefix[i] - 2 : starts[i] + inputs.prefix[i]] for i in (0, 2)])
    assert torch.equal(seen[0], wanted)
    assert (out.states["a"][1], out.states["b"][1]) == (2, 0)
    assert seen[1].shape == (0, 2, 64)
    assert torch.equal(embedder.base.logits(wanted), embedder.base.logits(seen[0]))


def test_a_term_on_no_items_hangs_on_the_graph():
    embedder = with_tokens(tiny(), 2).train()
    terms = {"o": (frozenset({5}), lambda s: (Orthogonality().states(s).sum, len(s)))}
    value, count = Local(embedder, AdamW()).embed(collated(embedder, words()), None, None, (), terms).states["o"]
    assert count == 0
    assert value.requires_grad and float(value.detach()) == 0


def test_states_without_tokens_and_tokens_without_prompts_that_end_in_them_are_refused():
    embedder = tiny()
    with pytest.raises(ValueError, match="o: goes by the states of embedding tokens, and this embedder has none"):
        embedder(collated(embedder, words()), None, None, (), {"o": (frozenset({0}), squares)})
    with pytest.raises(ValueError, match=r"with_tokens\(embedder, 4\), which adds them"):
        remade(embedder, replace(embedder.settings, tokens=4), None)
    with pytest.raises(ValueError, match="tokens=-1; expected 0 or more"):
        Settings(tokens=-1)


def test_what_tokens_cannot_be_added_to_says_why():
    with pytest.raises(ValueError, match="this embedder has 2 embedding tokens"):
        with_tokens(with_tokens(tiny(), 2), 3)
    with pytest.raises(ValueError, match="merge it in first"):
        with_tokens(attach(tiny(), Lora(rank=2)), 3)
    with pytest.raises(ValueError, match="attention='bidirectional': embedding tokens need 'causal'"):
        with_tokens(language(attention="bidirectional", pooling="mean"), 3)
    with pytest.raises(ValueError, match="embedding tokens at the tail see all"):
        remade(with_tokens(tiny(), 2), Settings(tokens=2, pooling="mean", attention="bidirectional"), None)


def test_a_tokenizer_that_ends_texts_itself_is_refused():
    from tokenizers.processors import TemplateProcessing

    embedder = language(chat=False)
    tok = embedder.backbone.processor
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", tok.convert_tokens_to_ids("<|endoftext|>"))]
    )
    template = replace(embedder.template, specials=True)
    ending = Embedder(embedder.backbone.under(template), template, embedder.settings)
    with pytest.raises(ValueError, match="ends every text in a token of its own"):
        with_tokens(ending, 2)


def test_cutting_a_long_text_never_cuts_the_tokens():
    embedder = with_tokens(tiny(), 4)
    prompt = Prompted(Item.text("a red circle " * 200), "query")
    found = embedder.format.segments([prompt], [Limits(max_tokens=40)])[0]
    assert len(found.ids) == 40
    assert found.ids[-4:] == ids(embedder)


def test_orthogonality_is_0_for_orthogonal_states_and_1_for_equal_ones():
    three = torch.eye(3, 8, dtype=torch.float64)[None] * torch.tensor([1.0, 5.0, 0.2])[None, :, None]
    same = torch.ones(2, 4, 8)
    assert float(Orthogonality().states(three).sum) == 0
    assert Orthogonality().states(three).count == 1
    assert float(Orthogonality().states(same).sum) / 2 == pytest.approx(1)
    both = torch.stack([torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[1.0, 0], [0, 1]])])
    assert float(Orthogonality().states(both).sum) == pytest.approx(0.5)  # a cosine of root 1/2, and one of 0
    assert isinstance(Orthogonality(), States)
    assert Orthogonality().weight == 0.5
    with pytest.raises(ValueError, match="K of 2 or more embedding tokens: raise tokens"):
        Orthogonality().states(torch.zeros(1, 1, 8))


def test_orthogonality_equals_the_sum_over_pairs():
    states = torch.randn(5, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(states, dim=-1)
    pairs = sum((unit[:, i] * unit[:, j]).sum(-1).square().sum() for i in range(4) for j in range(i + 1, 4))
    assert float(Orthogonality().states(states).sum) == pytest.approx(float(2 / 12 * pairs), abs=1e-12)
