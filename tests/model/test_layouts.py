"""Foreign layouts: golden prompts by the originals' rules, and folders recognised by their files."""

import json

import pytest
from omni2vec.data.types import Blob, DataError, Image, Item, Prompted, Text, Video
from omni2vec.model.layouts import layout_of

from .prompts import QWEN2_VL, QWEN3_VL, Processor, tokenizer

PICTURE = Image(Blob(b"1"), 64, 64)
CLIP = Video(Blob(b"3"), 64, 64, 8, 4.0)
BOTH = Item((PICTURE, Text("what is it?")))
TEXT = Item.text("a red circle")


def render(layout, item, instruction="", side="query"):
    return layout.template.render(Prompted(item, side=side, instruction=instruction)).text


def folder(tmp_path, config=None, **files):
    """A checkpoint folder of JSON files; "a__b" stands for a/b.json."""
    if config is not None:
        files["config"] = config
    for name, content in files.items():
        path = tmp_path / (name.replace("__", "/") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return tmp_path


def st(pooling, *, normalise=True, bert=None, settings=None, legacy=False):
    """The files that sentence-transformers writes, by the names of its release 6.2 or before 5.4."""
    old = "sentence_transformers.models."
    kinds = {
        "Transformer": ("", "sentence_transformers.base.modules.transformer."),
        "Pooling": ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling."),
        "Normalize": ("2_Normalize", "sentence_transformers.base.modules.normalize."),
    }
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": (old if legacy else new) + kind}
        for i, (kind, (path, new)) in enumerate(kinds.items())
        if normalise or kind != "Normalize"
    ]
    return {
        "modules": modules,
        "1_Pooling__config": pooling,
        "sentence_bert_config": bert or {},
        "config_sentence_transformers": settings or {},
    }


# Rules: QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_embedding.py, format_model_input and _preprocess_inputs.
QWEN3_GOLDEN = [
    (
        TEXT,
        "",
        "<|im_start|>system\nRepresent the user's input.<|im_end|>\n"
        "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        BOTH,
        " Retrieve images relevant to the query ",  # stripped, and ended
        "<|im_start|>system\nRetrieve images relevant to the query.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what is it?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        Item((CLIP, Text("raw  white space \n"))),
        "Is it there?",
        "<|im_start|>system\nIs it there?<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|video_pad|><|vision_end|>raw  white space \n<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        Item(()),
        "找图。",
        "<|im_start|>system\n找图。<|im_end|>\n<|im_start|>user\nNULL<|im_end|>\n<|im_start|>assistant\n",
    ),
]


@pytest.mark.parametrize(("item", "instruction", "golden"), QWEN3_GOLDEN)
def test_qwen3_vl_embedding_prompts(tmp_path, item, instruction, golden):
    path = folder(tmp_path / "Qwen3-VL-Embedding-2B", {"model_type": "qwen3_vl"})
    layout = layout_of(path, processor=Processor(QWEN3_VL))
    assert render(layout, item, instruction) == golden
    assert render(layout, item, instruction, "target") == golden
    assert (layout.name, layout.pooling, layout.normalise, layout.attention) == (
        "qwen3_vl_embedding",
        "last",
        True,
        "causal",
    )
    assert (layout.limits.max_tokens, layout.limits.max_pixels // 32**2, layout.limits.fps) == (8192, 1800, 1.0)


# Rules: Alibaba-NLP/gme-Qwen2-VL, gme_inference.py, embed (a copy: TIGER-AI-Lab/VLM2Vec,
# src/model/baseline_backbone/gme/gme_inference.py). Targets always have the default instruction.
GME_GOLDEN = [
    (
        TEXT,
        "",
        "query",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
    ),
    (
        BOTH,
        "Find an image that matches the given text.",
        "query",
        "<|im_start|>system\nFind an image that matches the given text.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>what is it?<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
    ),
    (
        Item((PICTURE,)),
        "Find an image that matches the given text.",
        "target",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
    ),
]


@pytest.mark.parametrize(("item", "instruction", "side", "golden"), GME_GOLDEN)
def test_gme_prompts(tmp_path, item, instruction, side, golden):
    path = folder(tmp_path, {"model_type": "qwen2_vl", "auto_map": {"AutoModel": "modeling_gme_qwen2vl.GmeQwen2VL"}})
    layout = layout_of(path, processor=Processor(QWEN2_VL))
    assert render(layout, item, instruction, side) == golden
    assert (layout.name, layout.pooling, layout.normalise) == ("gme", "last", True)


# Rules: TIGER-AI-Lab/VLM2Vec, process_input_text in src/model/processor.py, and
# experiments/examples/qwen2vl/demo_v2_image.py, demo_v2_video.py.
VLM2VEC_GOLDEN = [
    (TEXT, "", "a red circle"),
    (TEXT, "Find me an everyday image that matches the given caption:", None),
    (Item((PICTURE,)), "Represent the given image.", "<|image_pad|> Represent the given image."),
    (
        BOTH,
        "Represent the given image with the following question:",
        "<|image_pad|> Represent the given image with the following question: what is it?",
    ),
    (Item((CLIP,)), "Represent the given video.", "<|video_pad|> Represent the given video."),
    (Item((Text("behind"), CLIP, PICTURE)), "Both:", "<|image_pad|> <|video_pad|> Both: behind"),
]


@pytest.mark.parametrize(("item", "instruction", "golden"), VLM2VEC_GOLDEN)
def test_vlm2vec_prompts(tmp_path, item, instruction, golden):
    path = folder(
        tmp_path / "VLM2Vec-V2.0",
        adapter_config={"base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct", "revision": None},
    )
    layout = layout_of(path, processor=Processor(QWEN2_VL))
    golden = golden or f"{instruction} a red circle"
    assert render(layout, item, instruction) == golden
    assert (layout.base, layout.template.flat_positions, layout.pooling) == ("Qwen/Qwen2-VL-2B-Instruct", True, "last")


def test_a_plain_vlm_gets_our_own_layout(tmp_path):
    layout = layout_of(folder(tmp_path, {"model_type": "qwen2_vl"}), processor=Processor(QWEN2_VL))
    assert render(layout, TEXT, "Find.") == (
        "<|im_start|>system\nFind.<|im_end|>\n<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (layout.name, layout.pooling, layout.attention) == ("omni2vec", "last", "causal")


@pytest.mark.parametrize("generation", [True, False])
def test_a_sentence_transformers_vlm_says_itself_whether_the_reply_is_opened(tmp_path, generation):
    bert = {"modality_config": {"message": {"method": "forward", "format": "structured"}}}
    if generation:
        bert["processing_kwargs"] = {"chat_template": {"add_generation_prompt": True}}
    files = st({"pooling_mode": "lasttoken"}, bert=bert, settings={"prompts": {"query": "Find.", "document": ""}})
    layout = layout_of(folder(tmp_path, {"model_type": "qwen2_vl"}, **files), processor=Processor(QWEN2_VL))
    end = "<|im_start|>assistant\n" if generation else ""
    asked = f"<|im_start|>system\nFind.<|im_end|>\n<|im_start|>user\na red circle<|im_end|>\n{end}"
    assert render(layout, TEXT) == asked
    assert "You are a helpful assistant." in render(layout, TEXT, side="target")


def test_a_text_encoder_pools_by_its_first_token_and_sees_both_ways(tmp_path):
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    settings = {"prompts": {"query": "query: ", "passage": "passage: "}}
    files = st(pooling, bert={"max_seq_length": 512}, settings=settings, legacy=True)
    layout = layout_of(folder(tmp_path, {"model_type": "bert"}, **files), processor=tokenizer())
    assert (layout.pooling, layout.attention, layout.normalise) == ("cls", "bidirectional", True)
    assert layout.limits.max_tokens == 512
    assert layout.template.specials
    assert render(layout, TEXT) == "query: a red circle"
    assert render(layout, TEXT, side="target") == "passage: a red circle"


def test_an_instruct_prompt_of_a_text_decoder_takes_other_instructions(tmp_path):
    # As in Qwen/Qwen3-Embedding-0.6B, config_sentence_transformers.json.
    prompt = "Instruct: Given a web search query, retrieve relevant passages\nQuery:"
    files = st({"pooling_mode_lasttoken": True}, settings={"prompts": {"query": prompt, "document": ""}}, legacy=True)
    layout = layout_of(folder(tmp_path, {"model_type": "qwen3"}, **files), processor=tokenizer(QWEN3_VL))
    assert render(layout, TEXT) == prompt + "a red circle"
    assert render(layout, TEXT, "Find rhymes") == "Instruct: Find rhymes\nQuery:a red circle"
    assert render(layout, TEXT, side="target") == "a red circle"
    assert (layout.pooling, layout.attention) == ("last", "causal")


def test_mean_pooling_without_the_prompt_masks_the_instruction(tmp_path):
    files = st({"pooling_mode": "mean", "include_prompt": False}, normalise=False)
    layout = layout_of(folder(tmp_path, {"model_type": "qwen2", "is_causal": False}, **files), processor=tokenizer())
    assert (layout.pooling, layout.mask_instruction, layout.normalise) == ("mean", True, False)
    assert layout.attention == "bidirectional"


@pytest.mark.parametrize("modes", [["cls", "mean"], "max"])
def test_a_pooling_that_we_lack_is_refused_with_its_file(tmp_path, modes):
    path = folder(tmp_path, {"model_type": "bert"}, **st({"pooling_mode": modes}))
    with pytest.raises(DataError, match=r"1_Pooling/config.json: pooling"):
        layout_of(path, processor=tokenizer())


def test_a_dense_module_is_refused_with_its_file(tmp_path):
    files = st({"pooling_mode": "mean"})
    files["modules"].append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    with pytest.raises(DataError, match=r"modules.json: module Dense \(in 3_Dense\) cannot be taken over faithfully"):
        layout_of(folder(tmp_path, {"model_type": "bert"}, **files), processor=tokenizer())


def test_a_layout_may_be_named_and_a_wrong_name_lists_the_right_ones(tmp_path):
    path = folder(tmp_path, adapter_config={"base_model_name_or_path": "b", "revision": "r"})
    layout = layout_of(path, processor=Processor(QWEN2_VL), name="vlm2vec")
    assert (layout.name, layout.base, layout.revision) == ("vlm2vec", "b", "r")
    with pytest.raises(DataError, match="layout 'vlm' is not known; expected one of omni2vec, qwen3_vl_embedding"):
        layout_of(path, processor=Processor(QWEN2_VL), name="vlm")


def test_a_file_cut_short_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qw')
    with pytest.raises(DataError, match=r"config.json: not JSON"):
        layout_of(tmp_path, processor=Processor(QWEN2_VL))
