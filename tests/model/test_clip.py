"""open_clip models as encoders: the library's own vectors, part by part, without a download."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.parts.video import decode
from omni2vec.data.types import Audio, Blob, DataError, Event, Events, Item, Text
from omni2vec.model.backbones.clip import Clip
from omni2vec.model.encode import as_items
from omni2vec.model.encoder import load_encoder

from .small import clip, picture

open_clip = pytest.importorskip("open_clip", reason='needs open_clip: pip install "omni2vec[clip]"')
pytestmark = pytest.mark.installed
SIZES = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: Any) -> Clip:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("configs") / "small-clip.json"
    path.write_text(json.dumps(SIZES))
    open_clip.add_model_config(path)
    model, _, transform = open_clip.create_model_and_transforms("small-clip", pretrained=None)
    return Clip(model, transform, open_clip.get_tokenizer("small-clip"), "small-clip")


@pytest.fixture(scope="module")
def rng() -> Any:
    import numpy as np

    return np.random.default_rng(0)


def test_texts_and_pictures_have_the_library_s_own_vectors(small: Clip, rng: Any) -> None:
    pictures = [picture(rng, 80, 50), picture(rng, 64, 64), picture(rng, 40, 90)]
    texts = ["a red circle", "a blue square " * 20]
    with torch.no_grad():
        seen = small.model.encode_image(torch.stack([small.transform(p) for p in pictures]))
        read = small.model.encode_text(small.tokenizer(texts))
    got = small.encode_items(as_items([*pictures, *texts])[0])
    torch.testing.assert_close(got, F.normalize(torch.cat([seen, read]), dim=-1), rtol=0, atol=1e-6)
    assert (got.dtype, got.shape) == (torch.float32, (5, small.width))


def test_an_item_of_several_parts_is_the_sum_of_its_unit_vectors(small: Clip, rng: Any) -> None:
    first, second = picture(rng, 64, 64), picture(rng, 50, 70)
    items = as_items([first, second, "make it blue", {"image": [first, second], "text": "make it blue"}])[0]
    one, two, said, whole = small.encode_items(items)
    torch.testing.assert_close(whole, F.normalize(one + two + said, dim=-1), rtol=0, atol=1e-6)


def test_a_clip_weighs_as_much_as_a_picture(small: Clip, rng: Any) -> None:
    moving, still = clip(rng, 12, 60, 40), picture(rng, 64, 64)
    items = as_items([{"video": moving}, still, {"video": moving, "image": still}])[0]
    film, photo, both = small.encode_items(items)
    (part,) = items[0].parts
    frames = small.pictures(list(decode(part, [0, 1, 3, 4, 6, 7, 9, 10], ""))).mean(0)  # type: ignore[arg-type]
    torch.testing.assert_close(film, F.normalize(frames, dim=-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(both, F.normalize(frames + photo, dim=-1), rtol=0, atol=1e-6)


def test_the_order_and_the_size_of_batches_do_not_matter(small: Clip, rng: Any) -> None:
    items = as_items([f"text {i}" if i % 3 else picture(rng, 48, 48) for i in range(70)])[0]
    together = small.encode_items(items)
    torch.testing.assert_close(small.encode_items(items[::-1]).flip(0), together, rtol=0, atol=1e-6)
    torch.testing.assert_close(small.encode_items(items[66:67])[0], together[66], rtol=0, atol=1e-6)
    assert small.encode_items([]).shape == (0, small.width)


def test_an_instruction_changes_nothing(small: Clip) -> None:
    items = [Item.text("a red circle")]
    assert torch.equal(small.encode_items(items, side="target", instruction="find it"), small.encode_items(items))


def test_behaviour_is_read_newest_first(small: Clip) -> None:
    events = Events((Event("viewed", "a hat"), Event("bought", "a coat")))
    person, spelled = small.encode_items([Item((events,)), Item.text("bought a coat viewed a hat")])
    assert torch.equal(person, spelled)


@pytest.mark.parametrize(
    ("item", "words"),
    [(Item((Audio(Blob(b"x"), 1.0, 8000),)), "audio"), (Item(()), "input 1"), (Item((Text(""),)), "input 1")],
)
def test_what_it_cannot_see_is_refused_by_name(small: Clip, item: Item, words: str) -> None:
    with pytest.raises(DataError, match=words):
        small.encode_items([Item.text("a"), item])


def test_the_digest_follows_the_weights(small: Clip) -> None:
    before = small.digest
    assert small.digest == before
    with torch.no_grad():
        small.model.text_projection[0, 0] += 1
        changed = small.digest
        small.model.text_projection[0, 0] -= 1
    assert len(before) == 32
    assert changed != before


def test_it_loads_by_name_from_a_file_of_weights(small: Clip, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(small.model.state_dict()), tmp_path / "weights.safetensors")
    loaded = load_encoder(f"open_clip:small-clip@{tmp_path / 'weights.safetensors'}")
    items = [Item.text("a red circle"), Item.text("two")]
    torch.testing.assert_close(loaded.encode_items(items), small.encode_items(items), rtol=0, atol=1e-6)


def test_random_weights_are_no_baseline() -> None:
    with pytest.raises(ValueError, match="laion2b_s34b_b79k"):
        load_encoder("open_clip:ViT-B-32")


def test_a_picture_is_upright_and_on_white_before_the_transform(small: Clip, rng: Any) -> None:
    from PIL import Image as Pillow

    clear = Pillow.new("RGBA", (64, 64), (255, 0, 0, 0))
    turned, buffer = picture(rng, 60, 40), io.BytesIO()
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    turned.save(buffer, "PNG", exif=exif)
    upright = turned.transpose(Pillow.Transpose.ROTATE_270)
    white = Pillow.new("RGB", (64, 64), "white")
    a, b, c, d = small.encode_items(as_items([clear, white, {"image": buffer.getvalue()}, upright])[0])
    assert torch.equal(a, b)
    assert torch.equal(c, d)
