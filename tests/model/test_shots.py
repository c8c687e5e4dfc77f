"""Demonstrations in front of a query: rendered in every layout, masked whole, first to give way, counted exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from omni2vec.data.types import Blob, DataError, Event, Events, Image, Item, Limits, Prompted, Text
from omni2vec.model.backbones.qwen_vl import QwenVL
from omni2vec.model.backbones.text import TextFormat
from omni2vec.model.backbones.tiny import tokenizer
from omni2vec.model.embedder import Embedder
from omni2vec.model.encode import encode
from omni2vec.model.layouts import LAYOUTS
from omni2vec.model.template import Template

from .prompts import QWEN2_VL, QWEN3_VL, Processor
from .small import KINDS, TEXTS, mixed, tiny

PICTURE, OTHER, THIRD = (Image(Blob(bytes([k])), 64, 64) for k in range(3))
SHOTS = (
    (Item.text("first"), Item((PICTURE,))),
    (Item((OTHER, Text("second"))), Item((Text("an "), Events((Event("bought", "hat"),), "shop")))),
)
QUERY = Item((Text("what is "), THIRD, Text("this?")))
MARK = "<|vision_start|><|image_pad|><|vision_end|>"
SAID = f"Query: first\nAnswer: {MARK}\n\nQuery: {MARK}second\nAnswer: an <shop>\nbought: hat\n</shop>\n\n"


def asked(shots=SHOTS, item=QUERY, **settings):
    return Prompted(item, "query", settings.pop("instruction", "Find it."), shots=shots, key="k/1", **settings)


def parted(rendered):
    """The text without the demonstrations' range, and what stands in it."""
    ((start, end),) = [(a, b) for a, b in rendered.instruction if rendered.text[a:b].startswith("Query: first")]
    return rendered.text[:start] + rendered.text[end:], rendered.text[start:end]


@pytest.mark.parametrize("instruct", ["system", "front", "none"])
@pytest.mark.parametrize("chat", [QWEN2_VL, QWEN3_VL], ids=["qwen2_vl", "qwen3_vl"])
def test_a_chat_prompt_is_the_bare_one_with_demonstrations_in_front_of_the_user_s_words(chat, instruct):
    template = Template.of(Processor(chat), instruct=instruct)
    bare = template.render(asked(()))
    rest, said = parted(template.render(asked()))
    assert said == SAID
    assert rest == bare.text
    assert bare.fewer is None


def test_a_prompt_with_demonstrations_equals_apply_chat_template():
    processor = Processor(QWEN3_VL)
    image = {"type": "image", "image": "x"}
    content = [
        {"type": "text", "text": "Query: first\nAnswer: "}, image, {"type": "text", "text": "\n\nQuery: "}, image,
        {"type": "text", "text": "second\nAnswer: an <shop>\nbought: hat\n</shop>\n\nwhat is "}, image,
        {"type": "text", "text": "this?"},
    ]  # fmt: skip
    turns = [{"role": "system", "content": "Find it."}, {"role": "user", "content": content}]
    expected = processor.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    rendered = Template.of(processor).render(asked())
    assert rendered.text == expected
    assert rendered.media == (PICTURE, OTHER, THIRD)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_renders_demonstrations_once_it_is_given_their_frame(layout):
    template = LAYOUTS[layout](Processor(QWEN2_VL)).template
    if layout != "omni2vec":
        with pytest.raises(DataError, match=f"k/1: layout '{layout}' was not made for demonstrations"):
            template.render(asked())
    template = replace(template, shot=Template.shot)
    rendered, bare = template.render(asked()), template.render(asked(()))
    rest, said = parted(rendered)
    assert sorted(rest) in (sorted(bare.text), sorted(bare.text + template.joint))  # raw: media are joined on
    assert said.startswith("Query: first\nAnswer: ")
    assert [rendered.text[a:b] for a, b in rendered.cuttable] == [bare.text[a:b] for a, b in bare.cuttable]
    assert len(rendered.media) == 3


def test_raw_text_has_demonstrations_then_the_instruction_then_the_query():
    template = Template(instruct="front", frame="Instruct: {instruction}", separator="\nQuery: ")
    shots = ((Item.text("a"), Item.text("b")), (Item.text("c"), Item.text("d")))
    rendered = template.render(asked(shots, Item.text("what?")))
    assert rendered.text == "Query: a\nAnswer: b\n\nQuery: c\nAnswer: d\n\nInstruct: Find it.\nQuery: what?"
    assert [rendered.text[a:b] for a, b in rendered.cuttable] == ["what?"]


def test_a_template_that_writes_pictures_first_keeps_the_query_s_own_out_of_the_mask():
    chat = (
        "{% for m in messages %}{% for c in m.content %}{% if 'image' in c %}<|image_pad|>{% endif %}{% endfor %}"
        "{% for c in m.content %}{% if 'text' in c %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    template = Template.of(Processor(chat), instruct="none", generation=False)
    rendered = template.render(asked())
    pad = len("<|image_pad|>")
    assert rendered.text.startswith("<|image_pad|>" * 3 + "Query: first")
    assert rendered.instruction[0] == (0, 2 * pad)
    assert all(not a <= 2 * pad < b for a, b in rendered.instruction)


def test_a_demonstration_that_spells_a_placeholder_is_refused_by_the_query_s_key():
    with pytest.raises(DataError, match=r"k/1: a text holds '<\|image_pad\|>'"):
        Template.of(Processor(QWEN3_VL)).render(asked(((Item.text("a"), Item.text("<|image_pad|>")),)))


def test_fewer_is_the_prompt_without_the_last_demonstration():
    template = Template.of(Processor(QWEN3_VL))
    rendered = template.render(asked(answer="red"))
    assert rendered.fewer == template.render(asked(SHOTS[:1], answer="red"))
    assert rendered.fewer.fewer == template.render(asked((), answer="red"))
    assert rendered.answer == rendered.fewer.fewer.answer


@pytest.fixture(scope="module", params=KINDS)
def embedder(request):
    torch.set_num_threads(1)
    return tiny(request.param)


@pytest.fixture(scope="module")
def masked(embedder):
    """The same weights; instructions and demonstrations stay out of the mean."""
    base = embedder.backbone
    settings = replace(embedder.settings, pooling="mean", mask_instruction=True)
    return Embedder(QwenVL(base.model, base.processor, embedder.template, True), embedder.template, settings).eval()


def shown(count=8):
    """Queries of every kind behind two demonstrations of every kind, clips too."""
    items = mixed(count + 4)
    return [
        Prompted(
            items[i],
            instruction="find the caption",
            shots=((items[i + 1], items[i + 2]), (items[i + 3], items[i + 4])),
            key=f"k/{i}",
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_packed_equals_one_at_a_time_behind_demonstrations(embedder, masked, pooling):
    model = masked if pooling == "mean" else embedder
    prompts = shown()
    together = encode(model, prompts)
    alone = torch.cat([encode(model, [p]) for p in prompts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    bare = encode(model, [replace(p, shots=()) for p in prompts])
    assert ((together - bare).norm(dim=1) > 1e-4).all()  # they are seen


def test_count_and_collate_agree_behind_demonstrations(embedder):
    prompts = [replace(p, answer="the blue square" if i % 2 else "") for i, p in enumerate(shown())]
    longest = max(c.tokens for c in embedder.format.count(prompts, [embedder.limits] * len(prompts)))
    for most in (longest, longest - 1, 2 * longest // 3, longest // 2):
        limits = [replace(embedder.limits, max_tokens=most)] * len(prompts)
        costs = embedder.format.count(prompts, limits)
        inputs = embedder.format.collate(prompts, limits)
        assert tuple(c.tokens for c in costs) == inputs.lengths
        assert [c.labels for c in costs] == [n - p for n, p in zip(inputs.lengths, inputs.prefix, strict=True)]
        assert max(inputs.lengths) <= most
        assert {c.left for c in costs} <= {0, 1, 2}
        assert (most < longest) == any(c.left for c in costs)


def test_the_mean_is_over_the_tokens_that_it_would_be_over_without_demonstrations(masked):
    prompts = shown()
    limits = [masked.limits] * len(prompts)
    for found, bare in zip(
        masked.format.segments(prompts, limits),
        masked.format.segments([replace(p, shots=()) for p in prompts], limits),
        strict=True,
    ):
        pooled = [t for t, p in zip(found.ids, found.pooled, strict=True) if p]
        assert len(found.ids) > len(bare.ids)
        assert pooled == [t for t, p in zip(bare.ids, bare.pooled, strict=True) if p]


def test_whole_demonstrations_are_left_out_before_anything_of_the_item_s_own_gives_way(embedder):
    items = mixed(6)
    shots = ((Item.text("red circle " * 10), items[1]), (items[3], Item.text("square")))
    wide = {"min_pixels": 576, "max_pixels": 20_000}
    for query in (items[2], items[3], items[0]):
        prompt = asked(shots, query)

        def segment(most, prompt=prompt, kept=2):
            limits = Limits(max_tokens=most, **wide)
            (found,) = embedder.format.segments([replace(prompt, shots=prompt.shots[:kept])], [limits])
            return found

        whole = [segment(10_000, kept=k) for k in range(3)]
        left = []
        for most in range(len(whole[2].ids) + 3, 24, -1):
            found = segment(most)
            assert len(found.ids) <= most
            if len(whole[0].ids) <= most:  # as many as fit, each whole
                assert found.left == 2 - max(k for k in range(3) if len(whole[k].ids) <= most)
                assert found.ids == whole[2 - found.left].ids
                assert (found.cut, found.shrunk) == (0, False)
            else:  # then the Item's own, as without any
                bare = segment(most, kept=0)
                assert (found.ids, found.cut, found.shrunk) == (bare.ids, bare.cut, bare.shrunk)
                assert found.left == 2
            left.append(found.left)
        assert left == sorted(left)
        assert set(left) == {0, 1, 2}


def test_the_answer_takes_its_room_before_demonstrations_do(embedder):
    prompt = asked(((Item.text("a"), Item.text("b")),), Item.text("colour?"), answer="blue")
    (whole,) = embedder.format.count([prompt], [Limits(max_tokens=4000)])
    (tight,) = embedder.format.count([prompt], [Limits(max_tokens=whole.tokens - 1)])
    assert (whole.left, tight.left, tight.cut, tight.labels) == (0, 1, 0, whole.labels)


def test_the_sample_s_answer_changes_no_vector_behind_demonstrations(embedder):
    prompts = shown(4)
    bare = encode(embedder, prompts)
    assert torch.equal(encode(embedder, [replace(p, answer="blue") for p in prompts]),
                       encode(embedder, [replace(p, answer="a red circle") for p in prompts]))  # fmt: skip
    torch.testing.assert_close(encode(embedder, [replace(p, answer="blue") for p in prompts]), bare, rtol=0, atol=1e-5)


def test_a_language_model_drops_and_masks_demonstrations_alike():
    tok = tokenizer(TEXTS, 400)
    template = Template(instruct="front", frame="Instruct: {instruction}", separator="\nQuery: ")
    shots = ((Item.text("red circle " * 8), Item.text("blue")), (Item.text("square"), Item.text("caption")))
    prompt = asked(shots, Item.text("find the image"))
    form = TextFormat(tok, template, longest=4000, mask_instruction=True)
    whole = [form.segments([replace(prompt, shots=shots[:k])], [Limits()])[0] for k in range(3)]
    for kept, most in ((2, len(whole[2].ids)), (1, len(whole[2].ids) - 1), (0, len(whole[1].ids) - 1)):
        (found,) = TextFormat(tok, template, most, True).segments([prompt], [Limits()])
        assert (found.ids, found.left, found.cut) == (whole[kept].ids, 2 - kept, 0)
    words = [tok.decode([t for t, p in zip(s.ids, s.pooled, strict=True) if p]).strip() for s in whole]
    assert words == ["find the image"] * 3
