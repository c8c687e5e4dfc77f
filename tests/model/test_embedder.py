"""The public Embedder: what it takes, what it gives, what it saves, and what it says of bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from omni2vec import Embedder
from omni2vec.data.types import DataError, Item, Text
from omni2vec.model.checkpoint import digest_of_folder
from omni2vec.model.embedder import Fixed, Learned, cut, freeze
from omni2vec.model.lora import Lora, attach, merged
from PIL import Image

from .small import clip, mixed, picture, tiny


@pytest.fixture(scope="module")
def embedder():
    torch.set_num_threads(1)
    return tiny()


def test_every_kind_of_input_gives_a_unit_vector(embedder, tmp_path):
    rng = np.random.default_rng(0)
    photo = picture(rng, 60, 60)
    photo.save(tmp_path / "photo.png")
    (tmp_path / "clip.webp").write_bytes(clip(rng, 4, 50, 50))
    inputs = [
        "a red circle",
        photo,
        tmp_path / "photo.png",
        {"image": photo, "text": "make it blue"},
        {"text": "what happens?", "video": (tmp_path / "clip.webp").read_bytes()},
        {"image": str(tmp_path / "photo.png")},
        Item((Text("a red circle"),)),
    ]
    vectors = embedder.encode(inputs)
    assert vectors.shape == (7, 64)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(vectors[0], vectors[6])
    torch.testing.assert_close(vectors[1], vectors[2])
    torch.testing.assert_close(vectors[1], vectors[5])


def test_a_single_input_gives_a_single_vector(embedder):
    assert embedder.encode("red").shape == (64,)
    assert embedder.encode(["red"]).shape == (1, 64)
    assert embedder.encode([]).shape == (0, 64)


def test_the_instruction_and_the_order_of_parts_count(embedder):
    rng = np.random.default_rng(0)
    photo = picture(rng, 60, 60)
    a, b = {"image": photo, "text": "blue"}, {"text": "blue", "image": photo}
    plain, told = embedder.encode([a, b]), embedder.encode([a, b], instruction="find the caption")
    assert (plain - told).abs().max() > 1e-3
    assert (plain[0] - plain[1]).abs().max() > 1e-3


def test_grey_and_transparent_pictures_are_taken(embedder):
    vectors = embedder.encode([Image.new(mode, (50, 50)) for mode in ("L", "RGBA", "P", "1", "CMYK")])
    assert torch.isfinite(vectors).all()


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (3.5, ValueError, "input 0: a image given as float"),
        ({"sound": b""}, ValueError, "parts are text, image, video, audio"),
        ({"image": "nowhere.png"}, FileNotFoundError, "no file nowhere.png"),
        ({"image": b"nonsense"}, DataError, "input 0"),
    ],
)
def test_bad_input_says_which_and_what_to_give(embedder, value, error, words):
    with pytest.raises(error, match=words):
        embedder.encode([value])


def test_an_audio_part_names_the_input_and_the_reason(embedder, tmp_path):
    import io
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(8000)
        w.writeframes(bytes(1600))
    with pytest.raises(DataError, match="input 0"):
        embedder.encode([{"audio": buffer.getvalue()}])


def test_saving_leaves_folders_of_others_beside_it_alone(embedder, tmp_path):
    for name in ("m.old", "m.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    embedder.save(tmp_path / "m")
    embedder.save(tmp_path / "m")  # over the first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "m.old", "m.partial"]
    assert (tmp_path / "m.old" / "mine").exists() and (tmp_path / "m.partial" / "mine").exists()


def test_save_and_load_give_the_same_vectors_settings_and_digest(embedder, tmp_path):
    settings = replace(
        embedder.settings, scale=Learned(init=12.0), dim=16, matryoshka=(16, 32), projection=32, pooling="mean"
    )
    torch.manual_seed(0)
    changed = Embedder(embedder.backbone, embedder.template, settings).eval()
    changed.save(tmp_path / "m")
    again = Embedder.load(tmp_path / "m")
    assert again.settings == settings
    assert again.template == embedder.template
    assert again.digest == changed.digest
    items = mixed(6)
    assert torch.equal(again.encode(items), changed.encode(items))
    assert again.encode(items).shape == (6, 16)
    assert float(again.scale.detach()) == pytest.approx(12.0)
    files = {p.suffix for p in (tmp_path / "m").iterdir()}
    assert files <= {".json", ".safetensors", ".jinja"}


def test_the_digest_changes_with_one_weight(embedder):
    before = embedder.digest
    with torch.no_grad():
        embedder.log_scale += 1e-3
    changed = embedder.digest
    with torch.no_grad():
        embedder.log_scale -= 1e-3
    assert before != changed


def test_saving_over_a_folder_replaces_it_whole(embedder, tmp_path):
    embedder.save(tmp_path / "m")
    (tmp_path / "m" / "stale.txt").write_text("old")
    embedder.save(tmp_path / "m")
    assert not (tmp_path / "m" / "stale.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_cut_vector_is_a_prefix_of_unit_length(embedder):
    items = mixed(4)
    whole = embedder.encode(items)
    short = embedder.encode(items, dim=16)
    torch.testing.assert_close(short, cut(whole, 16))
    torch.testing.assert_close(short.norm(dim=1), torch.ones(4))


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_merges_in(embedder, tmp_path):
    items = mixed(6)
    before = embedder.encode(items)
    embedder.save(tmp_path / "base")
    adapted = attach(Embedder.load(tmp_path / "base"), Lora(rank=4))
    torch.testing.assert_close(adapted.encode(items), before, rtol=0, atol=1e-6)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in n for n in trained)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in adapted.parts()["adapter"]:
            p.normal_(std=0.1)
    changed = adapted.encode(items)
    assert (changed - before).abs().max() > 1e-2
    adapted.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < (
        tmp_path / "base" / "model.safetensors"
    ).stat().st_size
    torch.testing.assert_close(Embedder.load(tmp_path / "adapter").encode(items), changed, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged(adapted).encode(items), changed, rtol=0, atol=1e-5)


def test_instruction_tokens_are_left_out_of_the_mean_where_asked(embedder, tmp_path):
    settings = replace(embedder.settings, pooling="mean", mask_instruction=True)
    Embedder(embedder.backbone, embedder.template, settings).save(tmp_path / "m")
    masked = Embedder.load(tmp_path / "m")
    from omni2vec.data.types import Prompted

    inputs = masked.format.collate([Prompted(Item.text("red"), "query", "find the caption")], [masked.limits])
    hidden_out = [
        masked.format.tokenizer.decode([t])
        for t, p in zip(inputs.ids.tolist(), inputs.pooled.tolist(), strict=True)
        if not p
    ]
    assert "".join(hidden_out) == "find the caption"
    empty = masked.format.collate([Prompted(Item.text("red"))], [masked.limits])
    assert empty.pooled.all()


def test_frozen_parts_take_no_gradient(embedder, tmp_path):
    embedder.save(tmp_path / "m")
    model = Embedder.load(tmp_path / "m")
    freeze(model, ["tower", "scale"])
    assert not any(p.requires_grad for p in model.base.groups()["tower"])
    assert all(p.requires_grad for p in model.base.groups()["language"])
    with pytest.raises(ValueError, match="parts are"):
        freeze(model, ["ears"])


def test_a_temperature_is_fixed_or_learned_and_clamped(embedder):
    fixed = Embedder(embedder.backbone, embedder.template, replace(embedder.settings, scale=Fixed(20.0)))
    assert not fixed.log_scale.requires_grad
    learned = Embedder(
        embedder.backbone, embedder.template, replace(embedder.settings, scale=Learned(init=20.0, max=30.0))
    )
    with torch.no_grad():
        learned.log_scale.fill_(10.0)
    assert float(learned.scale.detach()) == pytest.approx(30.0)


@pytest.mark.parametrize("damage", ["cut", "gone", "no_config"])
def test_an_unreadable_checkpoint_names_the_folder_and_the_remedy(embedder, tmp_path, damage):
    embedder.save(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "gone":
        weights.unlink()
    else:
        (tmp_path / "m" / "config.json").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path / "m")):
        Embedder.load(tmp_path / "m")


def test_a_missing_folder_is_told_from_a_hub_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model folder .*give a folder with config.json, or a hub name"):
        Embedder.load(tmp_path / "nowhere")


def test_pickled_weights_are_never_read(embedder, tmp_path):
    embedder.save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        Embedder.load(tmp_path / "m")


def test_the_record_is_plain_json(embedder, tmp_path):
    embedder.save(tmp_path / "m")
    record = json.loads((tmp_path / "m" / "omni2vec.json").read_text())
    assert record["settings"]["pooling"] == "last"
    assert record["template"]["chat"]


def test_more_components_than_there_are_is_an_error(embedder, tmp_path):
    embedder.save(tmp_path / "m")
    for dim in (65, -1, 0):
        with pytest.raises(ValueError, match="vectors have 64 components; give 1 to 64"):
            embedder.encode("a red circle", dim=dim)
    with pytest.raises(ValueError, match="dim=65: vectors have 64 components"):
        Embedder.load(tmp_path / "m", dim=65)


@pytest.mark.parametrize("value", [None, 3, picture(np.random.default_rng(0), 20, 20)])
def test_a_text_that_is_none_is_not_embedded_as_its_repr(embedder, value):
    with pytest.raises(ValueError, match=f"input 0: a text given as {type(value).__name__}; give a string"):
        embedder.encode({"text": value})


def test_half_of_a_character_is_told_with_its_input(embedder):
    with pytest.raises(DataError, match=r"input 1: a text holds half of a character \('\\ud800'\)"):
        embedder.encode(["whole", "a \ud800 b"])


def test_a_picture_that_is_too_long_is_told_with_its_input(embedder):
    with pytest.raises(DataError, match=r"key input 1: .*longer than 200 times"):
        embedder.encode(["whole", picture(np.random.default_rng(0), 1, 300)])


def test_an_adapter_s_pickled_weights_are_not_read(embedder, tmp_path):
    embedder.save(tmp_path / "base")
    attach(Embedder.load(tmp_path / "base"), Lora(rank=2)).save(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json stands without adapter_model.safetensors"):
        Embedder.load(tmp_path / "adapter")


def test_an_adapter_on_weights_that_are_in_no_folder_is_not_saved(embedder, tmp_path):
    with pytest.raises(ValueError, match="stands on weights that are in no folder"):
        attach(tiny(), Lora(rank=2)).save(tmp_path / "adapter")
    assert not any(tmp_path.iterdir())


def test_the_digest_of_a_folder_sees_its_modules_too(embedder, tmp_path):
    folder = embedder.save(tmp_path / "m")
    before = digest_of_folder(str(folder))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    assert digest_of_folder(str(folder)) != before


def test_a_part_without_parameters_cannot_be_frozen(embedder):
    assert embedder.base.model.config.tie_word_embeddings
    with pytest.raises(ValueError, match=r"freeze='head': this model has no parameters there .* it has tower"):
        freeze(embedder, ["head"])


def test_models_that_see_pixels_otherwise_have_other_digests():
    one, other = tiny(mean=0.5, std=0.25), tiny(mean=0.9, std=0.25)
    assert one.digest == tiny(mean=0.5, std=0.25).digest != other.digest
