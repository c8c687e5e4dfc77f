"""Releases: what is in the folder and on its card, and what cannot be said is refused with its reason."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from omni2vec.data.types import DataError, Item
from omni2vec.launch.card import portable
from omni2vec.launch.push import check
from omni2vec.launch.release import Release
from omni2vec.launch.verify import vectors, verify
from omni2vec.model.embedder import Embedder
from omni2vec.model.layouts import layout_of
from omni2vec.model.lora import Lora, attach
from omni2vec.model.template import Template

from .releases import READERS, here, one_thread, read, released, small

__all__ = ["one_thread"]
installed = pytest.mark.installed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A release as a run makes it: checked in fresh processes."""
    pytest.importorskip("sentence_transformers")
    embedder = small(matryoshka=(16, 32))
    folder = tmp_path_factory.mktemp("whole")
    source, out = embedder.save(folder / "source"), folder / "release"
    out.mkdir()
    about = {"title": "me/tiny", "base_model": "org/base", "datasets": ("org/data",), "tags": ("shapes",)}
    Release("release", str(source), **about).make(out, lambda step: folder)
    return embedder, out


@installed
def test_all_three_readers_give_the_vectors_of_the_trained_model_in_fresh_processes(whole):
    _, out = whole
    rows = [line for line in (out / "README.md").read_text().splitlines() if "; both, instruction |" in line]
    assert {row.split(" | ")[0].strip("| ") for row in rows} == READERS
    assert all(float(row.split("|")[3]) > 0.99999 for row in rows)


@installed
def test_a_release_is_a_checkpoint_that_trains_on(whole):
    embedder, out = whole
    again = Embedder.load(out, device="cpu")
    assert again.settings == embedder.settings
    assert again.template == embedder.template
    assert torch.equal(again.encode("a red circle"), embedder.encode("a red circle"))


@installed
def test_new_and_legacy_keys_stand_side_by_side(whole):
    _, out = whole
    pooling = read(out / "1_Pooling/config.json")
    assert (pooling["pooling_mode"], pooling["embedding_dimension"], pooling["include_prompt"]) == (
        "lasttoken",
        48,
        True,
    )
    assert {k for k, v in pooling.items() if v is True and k != "include_prompt"} == {"pooling_mode_lasttoken"}
    # text-embeddings-inference requires these two booleans, and max_seq_length.
    assert pooling["pooling_mode_cls_token"] is False
    assert pooling["pooling_mode_mean_tokens"] is False
    assert "word_embedding_dimension" not in pooling
    transformer = read(out / "sentence_bert_config.json")
    assert transformer["max_seq_length"] == 512
    assert transformer["processing_kwargs"]["chat_template"]["add_generation_prompt"] is True
    assert transformer["unpad_inputs"] is False
    assert set(transformer["modality_config"]) == {"text", "image", "video", "message"}
    kinds = [m["type"] for m in read(out / "modules.json")]
    assert kinds == [f"sentence_transformers.models.{k}" for k in ("Transformer", "Pooling", "Normalize")]
    assert "truncate_dim" not in read(out / "config_sentence_transformers.json")
    assert read(out / "config.json")["matryoshka_dimensions"] == [16, 32]  # vLLM
    assert read(out / "config.json")["architectures"] == ["Qwen2VLForConditionalGeneration"]


@installed
def test_the_card_says_what_the_hub_reads_and_holds_no_path_of_this_machine(whole):
    from huggingface_hub import metadata_load

    _, out = whole
    head = metadata_load(out / "README.md")
    assert head["license"] == "apache-2.0"
    assert (head["library_name"], head["pipeline_tag"]) == ("sentence-transformers", "sentence-similarity")
    assert (head["base_model"], head["datasets"]) == ("org/base", ["org/data"])
    assert {"omni2vec", "multimodal", "shapes"} <= set(head["tags"])
    text = (out / "README.md").read_text()
    assert 'SentenceTransformer("me/tiny")' in text
    assert str(out.parent) not in text
    assert ".../source" in text


@installed
def test_a_release_may_be_pushed_as_it_is(whole):
    _, out = whole
    names = check(out)
    assert {"README.md", "model.safetensors", "omni2vec.json", "1_Pooling/config.json"} <= set(names)


@installed
def test_a_folder_without_our_own_file_is_read_the_same_by_its_layout(whole, tmp_path):
    embedder, out = whole
    layout = layout_of(out)
    prompted = embedder.prompts([Item.text("a red circle")], instruction="Find it.")[0]
    assert layout.template.render(prompted).text == embedder.template.render(prompted).text
    assert (layout.pooling, layout.normalise, layout.limits.max_tokens) == ("last", True, 512)


@installed
def test_a_folder_that_lies_is_found_out(whole, tmp_path):
    embedder, out = whole
    shutil.copytree(out, tmp_path / "lying")
    config = read(out / "sentence_bert_config.json")
    config["processing_kwargs"]["chat_template"]["add_generation_prompt"] = False
    (tmp_path / "lying/sentence_bert_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"sentence-transformers gives another vector for \(text\)"):
        verify(tmp_path / "lying", vectors(embedder), run=here)


UNSAID = {
    "latent": ({"pooling": "latent", "latents": 4}, {}, "latent pooling has weights of its own"),
    "projection": ({"projection": 8}, {}, "the learned projection"),
    "masked": ({"pooling": "mean", "mask_instruction": True}, {}, "the instruction is left out of the pooling"),
    "front": ({}, {"instruct": "front"}, "its instruction is not a system turn"),
    "order": ({}, {"order": ("image",)}, "its parts stand as image"),
    "flat": ({}, {"flat_positions": True}, "its media have plain positions"),
}


@pytest.mark.parametrize(("settings", "template", "why"), UNSAID.values(), ids=UNSAID)
def test_what_sentence_transformers_cannot_say_is_refused_with_the_reason(tmp_path, settings, template, why):
    with pytest.raises(DataError, match=rf"cannot load this faithfully: {why}"):
        released(small(template=template, **settings), tmp_path)


def test_what_is_refused_may_be_released_without_their_files_and_the_card_says_so(tmp_path):
    embedder = small(pooling="latent", latents=4)
    out = released(embedder, tmp_path, allow="omni2vec")
    assert not (out / "modules.json").exists()
    card = (out / "README.md").read_text()
    assert "Not with this folder: latent pooling" in card
    assert "library_name: omni2vec" in card
    assert "AutoModel" not in card
    verified = verify(out, vectors(embedder), run=here)
    assert set(verified.cosines) == {"omni2vec"}
    assert set(verified.missing) == {"sentence-transformers", "transformers"}


def lora(tmp_path, **template):
    """A small embedder with an adapter that changes it, and the folder of its base."""
    base = small(template=template)
    folder = base.save(tmp_path / "base")
    loaded = Embedder.load(folder, device="cpu")
    tuned = attach(loaded, Lora(rank=2)).eval()
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    assert float(tuned.encode("a red circle") @ base.encode("a red circle")) < 0.999
    return tuned, folder


@installed
def test_an_adapter_is_merged_in_by_default(tmp_path):
    pytest.importorskip("sentence_transformers")
    tuned, _ = lora(tmp_path)
    before = vectors(tuned)
    out = released(tuned, tmp_path)
    assert not (out / "adapter_config.json").exists()
    assert verify(out, before, run=here).least > 0.99999


def test_an_adapter_alone_points_at_its_base_and_loads_in_omni2vec_and_peft(tmp_path):
    # In the layout of VLM2Vec-V2: raw text with placeholders, plain positions.
    raw = {"chat": "", "instruct": "front", "separator": " ", "generation": False, "order": ("image", "video")}
    tuned, base = lora(tmp_path, layout="vlm2vec", flat_positions=True, shot=(), **raw)
    before = vectors(tuned)
    out = released(tuned, tmp_path, adapter=True, base_model=str(base), revision="v1", allow="omni2vec")
    config = read(out / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == (str(base), "v1")
    assert not (out / "model.safetensors").exists()
    card = (out / "README.md").read_text()
    assert "library_name: peft" in card
    assert "Not with this folder: an adapter is loaded into the class it was trained in" in card
    assert set(verify(out, before, run=here).cosines) == {"omni2vec", "transformers"}


def test_an_adapter_needs_the_name_of_its_base():
    with pytest.raises(DataError, match="adapter=True needs base_model"):
        Release("release", "model", adapter=True)


def test_half_precision_is_saved_as_asked_and_readers_agree_on_it(tmp_path):
    out = released(small(), tmp_path, dtype="bfloat16")
    assert read(out / "config.json")["dtype"] == "bfloat16"
    assert (out / "model.safetensors").stat().st_size < (tmp_path / "source/model.safetensors").stat().st_size * 0.6
    found = verify(out, run=here)
    assert found.cosines["transformers"]["both, instruction"] > 0.99999


def test_a_report_of_another_model_is_refused():
    from omni2vec.eval.evaluate import Evaluate

    with pytest.raises(DataError, match="report 'scores' scores another model"):
        Release("release", "mine", report=Evaluate("scores", "other", ()))


def test_scores_stand_on_the_card_beside_chance_and_in_the_model_index(tmp_path):
    from huggingface_hub import metadata_load
    from omni2vec.eval.evaluate import Evaluate, evaluate
    from omni2vec.eval.stored import save
    from omni2vec.eval.types import Query, Task

    embedder = small()
    names = ["a red circle", "a blue square", "a green star"]
    task = Task(
        "shapes",
        "retrieval",
        tuple(Query(Item.text(f"find {n}"), (n,), key=n) for n in names),
        {n: Item.text(n) for n in names},
        digest="d",
    )
    report = evaluate(embedder, [task], name="ours", draws=50, progress=False)
    save(report, tmp_path / "scores")
    save(replace(report, model="the base"), tmp_path / "scores/baselines/0")
    source = str(embedder.save(tmp_path / "source"))
    out = tmp_path / "release"
    out.mkdir()
    step = Release("release", source, report=Evaluate("scores", source, ()), check=False)
    step.make(out, lambda s: tmp_path / s.name)
    head = metadata_load(out / "README.md")
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["name"] == "shapes"
    assert result["metrics"][0] == {"type": "hit@1", "value": round(100 * report.overall.value, 2)}
    text = (out / "README.md").read_text()
    assert "| shapes | hit@1 |" in text
    assert "over the base" in text
    assert "33.3" in text  # chance


def test_a_template_with_a_tail_keeps_it_inside_the_chat_template():
    from omni2vec.launch.export import chat

    given = Template(chat="{{ messages[0].content }}", tail="<|end|>")
    from transformers.utils.chat_template_utils import render_jinja_template

    for generation, expected in ((True, "x<|end|>"), (False, "x")):
        turns = [{"role": "user", "content": "x"}]
        text, _ = render_jinja_template([turns], chat_template=chat(given), add_generation_prompt=generation)
        assert text == [expected]


def test_what_a_card_shows_of_a_record_holds_no_password_signature_or_path_of_this_machine():
    record = {
        "at": "https://eve:topsecret9@host/mugs/{0..9}.tar?X-Amz-Signature=ab12",
        "out": "/home/eve/runs/one",
        "steps": 7,
    }
    shown = str(portable({"steps": [record, {"command": "pipe:curl -u eve:topsecret9 https://host/{}"}]}))
    assert not [s for s in ("topsecret9", "ab12", "/home") if s in shown]
    assert "host/mugs/{0..9}.tar" in shown
    assert ".../one" in shown
