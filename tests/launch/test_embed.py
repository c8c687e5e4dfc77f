"""`omni2vec embed` and `eval`: what each input becomes, what is written, and what cannot be read."""

import json

import pytest
from omni2vec.data.shards import write_shards
from omni2vec.data.types import DataError, Example, Image, Item, Text
from omni2vec.launch.embed import embed, gather, load_model
from omni2vec.launch.score import score, sources
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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from omni2vec.model.backbones.tiny import Tiny, build

    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny = Tiny(texts=(), width=32, heads=2, layers=1, vision=32, depth=1)
    build(tiny, ["a red circle", "a blue square"] * 20).save(folder)
    return str(folder)


def test_vectors_and_identities_are_written_in_order(model, tmp_path):
    from omni2vec import Embedder
    from safetensors import safe_open

    out = tmp_path / "new" / "vectors.safetensors"
    photo = picture(tmp_path / "a.png", (60, 60))
    assert embed(model, ["a red circle", str(photo), "a blue square"], out, "find it") == (3, 32)
    with safe_open(out, "pt") as file:
        vectors, about = file.get_tensor("vectors"), file.metadata()
    loaded = Embedder.load(model)
    assert about == {"model": loaded.digest, "side": "query", "instruction": "find it"}
    expected = loaded.encode(["a red circle", photo, "a blue square"], instruction="find it")
    assert (vectors - expected).abs().max() < 1e-5
    lines = [json.loads(line) for line in (tmp_path / "new" / "vectors.ids.jsonl").read_text().splitlines()]
    assert [(x["row"], x["input"]) for x in lines] == [(0, "a red circle"), (1, str(photo)), (2, "a blue square")]
    assert lines[1]["id"] == "a.png"


def test_vectors_are_not_written_as_anything_but_safetensors(tmp_path):
    with pytest.raises(DataError, match=r"end the name in \.safetensors"):
        embed("model", ["a"], tmp_path / "v.npy")


@pytest.fixture
def shards(tmp_path):
    rows = [(f"question {i}", f"answer {i}") for i in range(6)]
    examples = [Example("", "s", "retrieval", Item.text(q), (Item.text(a),)) for q, a in rows]
    for task in ("one", "two"):
        write_shards(examples, tmp_path / "set" / task)
    return tmp_path / "set"


def test_a_folder_of_folders_is_a_set_of_tasks(shards, tmp_path):
    assert [s.name for s in sources([str(shards)])] == ["one", "two"]
    assert [s.name for s in sources([str(shards / "one" / "shard-000000.tar")])] == ["shard-000000"]
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert [s.name for s in sources([str(tmp_path / "rows.jsonl"), str(shards / "two")])] == ["rows", "two"]


def test_a_model_beside_itself_differs_by_nothing(model, shards, tmp_path, capsys):
    score(model, [str(shards)], [model], tmp_path / "out", None)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [t["name"] for t in report["tasks"]] == ["one", "two"]
    assert report["comparisons"][0]["overall"]["value"] == 0.0
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    assert not (tmp_path / "out.partial").exists() and "one" in capsys.readouterr().out


def test_scores_without_a_folder_leave_nothing(model, shards, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    score(model, [str(shards / "one")], [], None, 3)
    assert sorted(tmp_path.rglob("*")) == before and "hit@1" in capsys.readouterr().out


def test_a_model_that_cannot_be_read_is_bad_input_of_eval(shards, tmp_path):
    with pytest.raises(DataError, match="no model folder"):
        score(str(tmp_path / "none"), [str(shards)], [], tmp_path / "out", None)
    assert not list(tmp_path.glob("out*"))
