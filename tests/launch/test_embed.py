"""Inputs of `omni2vec embed`: what each word becomes, its identity, and what cannot be read."""

import json

import pytest
from omni2vec.data.shards import write_shards
from omni2vec.data.types import DataError, Example, Image, Item, Text
from omni2vec.launch.embed import gather, load_model
from PIL import Image as Picture


def picture(path, size=(4, 3)):
    Picture.new("RGB", size, "red").save(path)
    return path


def test_a_word_is_a_text_and_a_file_is_a_medium(tmp_path):
    photo = picture(tmp_path / "a.png")
    text, image = gather(["a red circle", str(photo)], "query")
    assert text.item == Item.text("a red circle") and text.id == text.item.id
    assert isinstance(image.item.parts[0], Image) and image.item.parts[0].width == 4 and image.id == "a.png"


def test_a_file_that_is_missing_is_no_text():
    with pytest.raises(DataError, match=r"nothere\.jpg: no such file"):
        list(gather(["nothere.jpg"], "query"))


def test_a_sentence_that_ends_like_a_file_but_for_a_space_is_a_text():
    assert next(gather(["what is a .jpg ", ""], "query")).item.parts == (Text("what is a .jpg "),)


def test_json_lines_give_parts_in_order_with_paths_beside_the_file(tmp_path):
    picture(tmp_path / "a.png", (8, 5))
    lines = tmp_path / "rows.jsonl"
    rows = [{"id": 7, "image": "a.png", "text": "a mug"}, {"text": ["one", "two"]}]
    lines.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    first, second = gather([str(lines)], "query")
    assert first.id == "7" and [type(p) for p in first.item.parts] == [Image, Text] and first.item.parts[0].height == 5
    assert second.id == "rows.jsonl:2" and second.item.parts == (Text("one"), Text("two"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"rows\.jsonl, line 1: not JSON"),
        ("[1]", "line 1: expected an object"),
        ('{"id": "x"}', "line 1: nothing to embed"),
        ('{"image": "none.png"}', r"line 1: no file .*none\.png"),
        ('{"picture": "a.png"}', "line 1: a part named 'picture'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        list(gather([str(tmp_path / "rows.jsonl")], "query"))


def test_shards_give_their_queries_or_every_distinct_document(tmp_path):
    a, b, c = (Item.text(t) for t in "abc")
    rows = [("q1", (a,), (b,)), ("q2", (b, c), ())]
    examples = [Example("", "s", "retrieval", Item.text(q), right, wrong) for q, right, wrong in rows]
    write_shards(examples, tmp_path / "s")
    queries = list(gather([str(tmp_path / "s")], "query"))
    assert [q.item.parts[0].text for q in queries] == ["q1", "q2"] and queries[0].id == "s/shard-000000/000000"
    targets = list(gather([str(tmp_path / "s")], "target"))
    assert [(t.item.parts[0].text, t.id) for t in targets] == [("a", a.id), ("b", b.id), ("c", c.id)]


def test_a_model_that_is_missing_is_bad_input(tmp_path):
    with pytest.raises(DataError, match="no model folder"):
        load_model(str(tmp_path / "none"))
