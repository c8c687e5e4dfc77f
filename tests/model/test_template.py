"""Prompts: byte for byte those of the chat template, with the ranges of what they are made of."""

import json
from dataclasses import replace

import pytest
from omni2vec.data.types import Audio, Blob, DataError, Event, Events, Image, Item, Prompted, Text, Video
from omni2vec.model.template import Template

from .prompts import FLAT, QWEN2_VL, QWEN3_VL, Processor, tokenizer

PICTURE, OTHER = Image(Blob(b"1"), 64, 64), Image(Blob(b"2"), 32, 32)
CLIP = Video(Blob(b"3"), 64, 64, 8, 4.0)
ITEMS = {
    "text": (Text("a red circle"),),
    "picture": (PICTURE,),
    "picture, text": (PICTURE, Text("what is it?")),
    "text, picture, text": (Text("between "), PICTURE, Text(" and this")),
    "two pictures and a clip": (PICTURE, CLIP, OTHER, Text("compare")),
    "two texts": (Text("one"), Text("two")),
    "empty text beside a picture": (Text(""), PICTURE),
    "white space": (Text("  \n padded \t"),),
    "quotes, braces, markup": (Text("{{ m }} {% if %} <b>\"'&amp;"),),
}


def messages(parts, instruction="", flat=False):
    kinds = {Image: {"type": "image", "image": "x"}, Video: {"type": "video", "video": "x"}}
    content = [{"type": "text", "text": p.text} if isinstance(p, Text) else kinds[type(p)] for p in parts]
    turns = [{"role": "user", "content": "".join(c["text"] for c in content) if flat else content}]
    if instruction:
        system = instruction if flat else [{"type": "text", "text": instruction}]
        turns.insert(0, {"role": "system", "content": system})
    return turns


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("instruction", ["", "Find the caption."])
@pytest.mark.parametrize("parts", ITEMS.values(), ids=ITEMS)
@pytest.mark.parametrize("chat", [QWEN2_VL, QWEN3_VL], ids=["qwen2_vl", "qwen3_vl"])
def test_the_prompt_equals_apply_chat_template(chat, parts, instruction, generation):
    processor = Processor(chat)
    template = Template.of(processor, generation=generation)
    expected = processor.tokenizer.apply_chat_template(
        messages(parts, instruction), tokenize=False, add_generation_prompt=generation
    )
    assert template.render(Prompted(Item(parts), instruction=instruction)).text == expected


@pytest.mark.parametrize("parts", [ITEMS["text"], ITEMS["two texts"], ITEMS["white space"]])
def test_a_template_of_plain_strings_that_strips_them_is_followed(parts):
    processor = tokenizer(FLAT)
    rendered = Template.of(processor).render(Prompted(Item(parts), instruction=" Find. "))
    expected = processor.apply_chat_template(
        messages(parts, " Find. ", flat=True), tokenize=False, add_generation_prompt=True
    )
    assert rendered.text == expected
    assert [rendered.text[a:b] for a, b in rendered.instruction] == ["Find."]


def test_ranges_hold_the_instruction_and_the_item_texts():
    template = Template.of(Processor(QWEN2_VL))
    item = Item((Text("first "), PICTURE, Text(" second")))
    rendered = template.render(Prompted(item, instruction="Find it."))
    assert [rendered.text[a:b] for a, b in rendered.instruction] == ["Find it."]
    assert [rendered.text[a:b] for a, b in rendered.cuttable] == ["first ", " second"]
    assert rendered.media == (PICTURE,)


def test_media_keep_the_order_of_their_placeholders_across_kinds():
    rendered = Template.of(Processor(QWEN3_VL)).render(Prompted(Item((OTHER, CLIP, PICTURE))))
    assert rendered.media == (OTHER, CLIP, PICTURE)
    assert rendered.text.index("<|video_pad|>") > rendered.text.index("<|image_pad|>")


def test_a_front_instruction_stands_before_the_first_text_or_last_without_one():
    template = Template.of(Processor(QWEN3_VL), instruct="front", generation=False)
    both = template.render(Prompted(Item((PICTURE, Text("here"))), instruction="Find."))
    assert both.text == "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Find.\nhere<|im_end|>\n"
    assert [both.text[a:b] for a, b in both.instruction] == ["Find.\n"]
    alone = template.render(Prompted(Item((PICTURE,)), instruction="Find."))
    assert alone.text == "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Find.<|im_end|>\n"


def test_each_side_has_its_default_instruction():
    template = Template.of(Processor(QWEN3_VL), query="Q.", target="T.")
    sides = [template.instruction(Prompted(Item.text("x"), side=s)) for s in ("query", "target")]
    assert sides == ["Q.", "T."]
    given = Prompted(Item.text("x"), side="target", instruction="Given.")
    assert template.instruction(given) == "Given."
    assert replace(template, target_instructed=False).instruction(given) == "T."
    assert replace(template, instruct="none").instruction(given) == ""


def test_the_tail_is_the_last_thing_and_an_empty_item_has_its_word():
    template = Template.of(Processor(QWEN3_VL), tail="<|endoftext|>")
    rendered = template.render(Prompted(Item(())))
    assert rendered.text == "<|im_start|>user\nNULL<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("chat", [QWEN2_VL, QWEN3_VL], ids=["qwen2_vl", "qwen3_vl"])
def test_prompt_and_answer_together_are_the_whole_conversation(chat, generation):
    processor = Processor(chat)
    template = Template.of(processor, generation=generation)
    rendered = template.render(Prompted(Item((PICTURE, Text("colour?"))), instruction="Answer.", answer="red "))
    turns = [*messages((PICTURE, Text("colour?")), "Answer."), {"role": "assistant", "content": "red "}]
    whole = processor.tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered.text + rendered.answer + "\n" == whole
    assert rendered.answer.endswith("red <|im_end|>")


def test_the_answer_does_not_change_the_prompt():
    template = Template.of(Processor(QWEN2_VL))
    asked = Prompted(Item.text("colour?"), instruction="Answer.")
    assert template.render(replace(asked, answer="red")).text == template.render(asked).text


def test_a_reply_that_opens_differently_brings_its_opening_along():
    rendered = Template.of(tokenizer(FLAT)).render(Prompted(Item.text("colour?"), answer="red"))
    assert rendered.text.endswith("[assistant]")
    assert rendered.answer == "<think></think>red<|im_end|>"


def test_events_are_lines_inside_the_markers_of_their_source_cut_at_the_front():
    events = Events((Event("viewed", "red shoes", 1.0), Event("bought", "a hat", 2.0)), "shop")
    rendered = Template.of(Processor(QWEN3_VL)).render(Prompted(Item((events, Text("What next?")))))
    lines = "viewed: red shoes\nbought: a hat"
    assert f"<shop>\n{lines}\n</shop>What next?<|im_end|>" in rendered.text
    assert [rendered.text[a:b] for a, b in rendered.cuttable] == [lines, "What next?"]
    assert rendered.cut_front == (True, False)


def test_demonstrations_stand_before_the_query_and_count_as_instruction():
    shots = ((Item.text("q1"), Item((PICTURE,))),)
    template = Template.of(Processor(QWEN3_VL))
    rendered = template.render(Prompted(Item((OTHER, Text("q"))), instruction="Find.", shots=shots))
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"user\nQuery: q1\nAnswer: {mark}\n\n{mark}q<|im_end|>" in rendered.text
    assert rendered.media == (PICTURE, OTHER)
    assert [rendered.text[a:b] for a, b in rendered.cuttable] == ["q"]
    assert [rendered.text[a:b] for a, b in rendered.instruction] == ["Find.", f"Query: q1\nAnswer: {mark}\n\n"]


def test_a_layout_that_knows_no_demonstrations_refuses_them_by_key():
    template = Template.of(Processor(QWEN3_VL), layout="gme", shot=())
    with pytest.raises(DataError, match=r"mmeb/0003/17: layout 'gme' was not made for demonstrations"):
        template.render(Prompted(Item.text("x"), shots=((Item.text("a"), Item.text("b")),), key="mmeb/0003/17"))


def test_a_sound_without_a_placeholder_is_refused_by_key():
    template = Template.of(Processor(QWEN3_VL))
    with pytest.raises(DataError, match=r"tones/0/5: holds audio, but layout 'omni2vec' has no audio placeholder"):
        template.render(Prompted(Item((Audio(Blob(b""), 1.0, 16_000),)), key="tones/0/5"))


@pytest.mark.parametrize("where", ["text", "instruction", "answer", "event"])
def test_a_text_that_spells_a_placeholder_is_refused(where):
    spelled = "see <|image_pad|>"
    parts = (Events((Event("viewed", spelled),)),) if where == "event" else (Text(spelled if where == "text" else "x"),)
    prompted = Prompted(
        Item(parts),
        instruction=spelled if where == "instruction" else "",
        answer=spelled if where == "answer" else "",
        key="a/0/1",
    )
    with pytest.raises(DataError, match=r"a/0/1: a text holds '<\|image_pad\|>'"):
        Template.of(Processor(QWEN3_VL)).render(prompted)


def test_a_chat_template_that_drops_pictures_is_found_out():
    deaf = QWEN3_VL.replace("<|vision_start|><|image_pad|><|vision_end|>", "")
    with pytest.raises(DataError, match=r"k: layout 'omni2vec': .* 0 placeholders for 1 of image"):
        Template.of(Processor(deaf)).render(Prompted(Item((PICTURE,)), key="k"))


def test_a_chat_template_that_rewrites_texts_is_found_out():
    shouting = QWEN3_VL.replace("{{ c.text }}", "{{ c.text | upper }}")
    with pytest.raises(DataError, match="it changes texts"):
        Template.of(Processor(shouting)).render(Prompted(Item.text("x")))


def test_a_template_survives_json_and_a_folder(tmp_path):
    template = Template.of(Processor(QWEN2_VL), tail="<|endoftext|>", order=("image", "video"))
    assert Template.from_dict(json.loads(json.dumps(template.to_dict()))) == template
    template.save(tmp_path)
    assert Template.load(tmp_path) == template
    assert [p.name for p in tmp_path.iterdir()] == ["omni2vec_template.json"]


def test_a_wrong_field_is_named_with_the_file(tmp_path):
    (tmp_path / "omni2vec_template.json").write_text('{"instrct": "front"}')
    with pytest.raises(DataError, match=r"omni2vec_template.json.*unknown field 'instrct'"):
        Template.load(tmp_path)


def test_raw_text_needs_no_chat_template_and_system_turns_do():
    with pytest.raises(ValueError, match="instruct='system' needs a chat template"):
        Template(instruct="system")
    with pytest.raises(DataError, match="nothing to embed"):
        Template(instruct="front").render(Prompted(Item.text("")))


def test_templates_import_without_torch():
    import subprocess
    import sys

    code = "import sys, omni2vec.model.template; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
