"""Limits: pictures and frames shrink first, then the longest text is cut; never the template, media or the answer."""

import pytest
from omni2vec.data.types import DataError, Event, Events, Item, Limits, Prompted, Text
from omni2vec.model.encode import as_items

from .small import mixed, picture, tiny


@pytest.fixture(scope="module")
def embedder():
    return tiny()


def segment(embedder, item, **limits):
    (found,) = embedder.format.segments([Prompted(item, "query", "find the caption", key="k/1")], [Limits(**limits)])
    return found


def text_of(embedder, found):
    return embedder.format.tokenizer.decode(found.ids)


WIDE = {"min_pixels": 576, "max_pixels": 100_000, "max_video_pixels": 50_000, "max_frames": 8}


def test_what_fits_is_left_alone(embedder):
    found = segment(embedder, mixed(6)[4], max_tokens=4000, **WIDE)
    assert not found.shrunk
    assert found.cut == 0


def test_pictures_shrink_before_any_text_is_cut(embedder):
    item = mixed(6)[3]  # a text and two pictures
    whole = segment(embedder, item, max_tokens=4000, **WIDE)
    found = segment(embedder, item, max_tokens=len(whole.ids) - 6, **WIDE)
    assert found.shrunk
    assert found.cut == 0
    assert len(found.ids) <= len(whole.ids) - 6
    assert sum(m.height * m.width for m in found.media) < sum(m.height * m.width for m in whole.media)
    assert text_of(embedder, found).replace("<|image_pad|>", "") == text_of(embedder, whole).replace(
        "<|image_pad|>", ""
    )


def test_frames_are_dropped_only_when_they_are_small(embedder):
    item = mixed(6)[5]
    whole = segment(embedder, item, max_tokens=4000, fps=100.0, **WIDE)
    (clip,) = whole.media
    smaller = segment(embedder, item, max_tokens=len(whole.ids) - 2, fps=100.0, **WIDE).media[0]
    assert len(smaller.indices) == len(clip.indices)
    assert smaller.height * smaller.width < clip.height * clip.width
    least = segment(
        embedder, item, max_tokens=len(whole.ids) - sum(e - s for s, e, _ in whole.spans) + 1, fps=100.0, **WIDE
    )
    assert len(least.media[0].indices) < len(clip.indices)


def test_the_longest_text_is_cut_at_its_end_and_the_template_s_tail_stays(embedder):
    item = Item((Text("first " * 40), Text("\nred")))
    whole = segment(embedder, item, max_tokens=4000)
    found = segment(embedder, item, max_tokens=60)
    assert len(found.ids) == 60
    assert found.cut == len(whole.ids) - 60
    text = text_of(embedder, found)
    assert text.endswith("\nred<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\nfind the caption<|im_end|>\n<|im_start|>user\nfirst first")


def test_two_long_texts_are_cut_alike(embedder):
    item = Item((Text(" circle" * 60), Text(" square" * 40)))
    text = text_of(embedder, segment(embedder, item, max_tokens=70))
    assert abs(text.count(" circle") - text.count(" square")) <= 1
    assert text.count(" circle") > 10


def test_the_oldest_behaviour_is_cut_first(embedder):
    events = Events(tuple(Event("viewed", f"thing {i}", float(i)) for i in range(30)), "shop")
    text = text_of(embedder, segment(embedder, Item((events,)), max_tokens=120))
    assert "thing 29" in text
    assert "thing 0\n" not in text
    assert text.endswith("<|im_start|>assistant\n")


def test_media_alone_beyond_the_limit_is_an_error_that_names_the_key(embedder):
    with pytest.raises(DataError, match=r"key k/1: .*raise Limits.max_tokens"):
        segment(embedder, mixed(6)[3], max_tokens=10, **WIDE)


def test_limits_hold_for_many_items_and_sizes(embedder):
    import numpy as np

    rng = np.random.default_rng(0)

    def drawn():
        photo = picture(rng, int(rng.integers(20, 400)), int(rng.integers(20, 300)))
        return {"text": "red circle " * int(rng.integers(1, 60)), "image": [photo] * int(rng.integers(1, 4))}

    items = as_items([drawn() for _ in range(30)])[0]
    limits = Limits(max_tokens=80, **WIDE)
    found = embedder.format.segments([Prompted(i, key="k") for i in items], [limits] * 30)
    assert all(len(s.ids) <= 80 for s in found)
    assert any(s.cut for s in found)
    assert any(s.shrunk for s in found)
    assert any(not s.shrunk and not s.cut for s in found)
