"""Released embedders as a start: tiny models saved in each foreign layout load by its rules, and are released in it."""

import json
from pathlib import Path

import pytest
import torch
from omni2vec.data.types import Item
from omni2vec.launch.export import export
from omni2vec.launch.release import Release
from omni2vec.launch.verify import picture, vectors, verify
from omni2vec.model.embedder import Embedder
from omni2vec.model.layouts import layout_of
from PIL import Image

from .releases import here, one_thread, small

__all__ = ["one_thread"]

OPEN = "<|im_start|>assistant\n"
SEEN = "<|vision_start|><|image_pad|><|vision_end|>"


def stock(embedder, folder):
    """The stock checkpoint alone, without a file of ours."""
    embedder.backbone.model.save_pretrained(folder)
    embedder.backbone.processor.save_pretrained(folder)
    return folder


def qwen3_vl_embedding(folder):
    """As on the hub since its sentence-transformers files came: message modality, reply opened, last token."""
    embedder = small("qwen3_vl")
    stock(embedder, folder)
    export(embedder, folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Qwen3-VL-Embedding-2B\n")
    return folder


def gme(folder):
    """As on the hub: code of its own, which is not run."""
    stock(small("qwen2_vl"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_gme_qwen2vl.GmeQwen2VL"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "gme_inference.py").write_text("raise RuntimeError('foreign code')\n")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "custom_st.MultiModalTransformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def vlm2vec(folder):
    """As on the hub: an adapter and a processor."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base = stock(small("qwen2_vl"), folder.parent / "base")
    model = AutoModelForImageTextToText.from_pretrained(base)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# VLM2Vec-V2.0\n")
    return folder


# The prompts of a picture, a text and an instruction, as the originals' code writes them (tests/model/test_layouts.py).
ORIGINALS = {
    "qwen3_vl_embedding": (
        qwen3_vl_embedding,
        f"<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\n{SEEN}a red circle<|im_end|>\n{OPEN}",
    ),
    "gme": (
        gme,
        f"<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\n{SEEN}a red circle<|im_end|>\n{OPEN}<|endoftext|>",
    ),
    "vlm2vec": (vlm2vec, "<|image_pad|> Find it. a red circle"),
}


def original(folder, prompt, shown, limits):
    """The vector by stock classes alone: golden prompt, pixels bounded as the original's code does, last state."""
    from peft import PeftModel
    from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    size = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
    inputs = processor(text=[prompt], images=[shown], images_kwargs={"size": size}, return_tensors="pt")
    if (folder / "adapter_config.json").exists():
        base = AutoModelForImageTextToText.from_pretrained(folder.parent / "base")
        model = PeftModel.from_pretrained(base, folder).merge_and_unload().model
        inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
    else:
        model = AutoModel.from_pretrained(folder, trust_remote_code=False)
    with torch.inference_mode():
        state = model.eval()(**inputs).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(state, dim=0)


@pytest.mark.parametrize(("save", "prompt"), ORIGINALS.values(), ids=ORIGINALS)
def test_a_released_embedder_gives_the_vectors_of_its_original(tmp_path, request, save, prompt):
    folder = save(tmp_path / "original")
    picture(tmp_path / "picture.png")
    shown = Image.open(tmp_path / "picture.png")
    embedder = Embedder.load(folder, device="cpu")
    assert embedder.template.layout == request.node.callspec.id
    ours = embedder.encode({"image": shown, "text": "a red circle"}, instruction="Find it.")
    assert float(ours @ original(folder, prompt, shown, embedder.limits)) > 0.99999


@pytest.mark.installed
@pytest.mark.parametrize("save", [qwen3_vl_embedding, gme])
def test_it_is_released_in_the_layout_that_it_came_in(tmp_path, save):
    pytest.importorskip("sentence_transformers")
    folder = save(tmp_path / "original")
    embedder = Embedder.load(folder, device="cpu")
    before = vectors(embedder)
    out = tmp_path / "release"
    out.mkdir()
    Release("release", str(folder), check=False).make(out, lambda step: tmp_path)
    assert verify(out, before, run=here).least > 0.99999
    (out / "omni2vec.json").unlink()  # what another program sees
    again = layout_of(out)
    for side, instruction in (("query", ""), ("query", "Find it."), ("target", "")):
        asked = embedder.prompts([Item.text("a red circle")], side, instruction)[0]
        assert again.template.render(asked).text == embedder.template.render(asked).text
    assert again.limits.max_tokens == embedder.limits.max_tokens


def test_an_adapter_on_a_base_goes_out_as_one(tmp_path):
    folder = vlm2vec(tmp_path / "original")
    before = vectors(Embedder.load(folder, device="cpu"))
    out = tmp_path / "VLM2Vec-mine"
    out.mkdir()
    base = str(tmp_path / "base")
    Release("release", str(folder), adapter=True, base_model=base, allow="omni2vec", check=False).make(
        out, lambda step: Path()
    )
    assert set(verify(out, before, run=here).cosines) == {"omni2vec", "transformers"}
    (out / "omni2vec.json").unlink()
    (out / "omni2vec.safetensors").unlink()
    again = layout_of(out)
    assert (again.name, again.base) == ("vlm2vec", base)
