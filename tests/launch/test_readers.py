"""Every layout and family that can be said: omni2vec, sentence-transformers and plain transformers give one vector."""

import io

import numpy as np
import pytest
import torch
from omni2vec.data.types import DataError
from omni2vec.launch.verify import fresh, vectors, verify
from omni2vec.model.backbones.text import TextLM
from omni2vec.model.backbones.tiny import tokenizer
from omni2vec.model.embedder import Embedder, Settings
from omni2vec.model.template import Template
from PIL import Image

from .releases import READERS, WORDS, here, one_thread, read, released, small

__all__ = ["one_thread"]
installed = pytest.mark.installed


VARIANTS = {
    "Qwen3-VL, as Qwen3-VL-Embedding": (
        "qwen3_vl",
        {"layout": "qwen3_vl_embedding", "query": "Represent the user's input.", "target": "x.", "full_stop": True},
        {},
    ),
    "a tail behind the opened reply, as GME": ("qwen2_vl", {"tail": "<|endoftext|>"}, {}),
    "mean, both ways, cut": ("qwen2_5_vl", {}, {"pooling": "mean", "attention": "bidirectional", "dim": 16}),
    "weighted mean, prefix, no opened reply, a tail, not normalised": (
        "qwen2_vl",
        {"tail": "<|vision_pad|>", "generation": False},
        {"pooling": "weighted", "attention": "prefix", "normalise": False},
    ),
}


@installed
@pytest.mark.parametrize(("kind", "template", "settings"), VARIANTS.values(), ids=VARIANTS)
def test_every_layout_that_can_be_said_is_the_same_in_all_readers(tmp_path, kind, template, settings):
    pytest.importorskip("sentence_transformers")
    embedder = small(kind, template, **settings)
    out = released(embedder, tmp_path)
    verified = verify(out, vectors(embedder), run=here)
    assert set(verified.cosines) == READERS
    assert verified.least > 0.99999


CLIPS = [(160, 96, 16, 100), (96, 80, 10, 250), (90, 60, 13, 77)]  # width, height, frames, milliseconds of each


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_clips_go_through_the_folders_own_processor_alike(tmp_path, kind):
    """Frames, their sizes, time stamps (Qwen3-VL) and time positions (Qwen2.5-VL), uneven steps included."""
    from transformers import AutoModel, AutoProcessor

    embedder = small(kind)
    out = released(embedder, tmp_path)
    processor, model = AutoProcessor.from_pretrained(out), AutoModel.from_pretrained(out).eval()
    rng = np.random.default_rng(0)
    turns = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what"}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    for width, height, count, duration in CLIPS:
        coarse = rng.integers(0, 255, (count, 6, 8, 3), dtype=np.uint8)
        first, *rest = [Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC) for c in coarse]
        file = io.BytesIO()
        first.save(file, "WEBP", save_all=True, append_images=rest, duration=duration, lossless=True)
        film = np.stack([np.asarray(frame) for frame in (first, *rest)])
        meta = {"fps": 1000 / duration, "total_num_frames": count, "duration": count * duration / 1000}
        inputs = processor(text=[prompt], videos=[film], video_metadata=[meta], return_tensors="pt")
        with torch.inference_mode():
            state = model(**inputs).last_hidden_state[0, -1]
        ours = embedder.encode({"video": file.getvalue(), "text": "what"})
        assert float(torch.nn.functional.normalize(state, dim=0) @ ours) > 0.99999


def words(family, template, **settings):
    """A small language model as an embedder."""
    import transformers as hf

    tok = tokenizer(WORDS, 400)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family != "Bert":
        sizes |= {"num_key_value_heads": 2, "head_dim": 12}
    torch.manual_seed(0)
    config = getattr(hf, f"{family}Config")(vocab_size=len(tok), max_position_embeddings=128, **sizes, pad_token_id=0)
    model = (hf.AutoModel if family == "Bert" else hf.AutoModelForCausalLM).from_config(config).eval()
    made = Template.of(tok, **template)
    return Embedder(TextLM(model, tok, made), made, Settings(**settings)).eval()


RAW = {"chat": "", "instruct": "front", "generation": False, "specials": True, "shot": ()}
TEXTS = {
    "an encoder with a prefix each side": (
        "Bert",
        {**RAW, "separator": "", "query": "query: ", "target": "passage: "},
        {"pooling": "cls", "attention": "bidirectional"},
    ),
    "a decoder with framed instructions": (
        "Qwen3",
        {**RAW, "separator": "", "frame": "Instruct: {instruction}\nQuery:", "query": "Find it."},
        {"pooling": "last"},
    ),
    "a decoder made an encoder": ("Qwen2", {}, {"pooling": "mean", "attention": "bidirectional"}),
}


@installed
@pytest.mark.parametrize(("family", "template", "settings"), TEXTS.values(), ids=TEXTS)
def test_language_models_are_the_same_in_all_readers(tmp_path, family, template, settings):
    pytest.importorskip("sentence_transformers")
    embedder = words(family, template, **settings)
    out = released(embedder, tmp_path)
    verified = verify(out, vectors(embedder), run=here)
    assert set(verified.cosines) == READERS
    assert verified.least > 0.99999
    assert read(out / "sentence_bert_config.json")["max_seq_length"] == 128  # the model's positions, not our limit
    (out / "omni2vec.json").unlink()
    again = Embedder.load(out, device="cpu")
    asked = {"instruction": embedder.template.query or "Find it."}
    assert float(again.encode("a red circle", **asked) @ embedder.encode("a red circle", **asked)) > 0.99999


def test_a_reader_that_fails_is_named_with_its_last_words(tmp_path):
    script = tmp_path / "read_transformers.py"
    script.write_text("raise OSError('no file named model.safetensors')")
    with pytest.raises(DataError, match=r"(?s)read_transformers cannot load or run .* no file named model.safetensors"):
        fresh(script, tmp_path)
