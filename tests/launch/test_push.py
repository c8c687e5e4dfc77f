"""Pushing: what is shown is what goes, an overwrite is asked for, a token is never seen. Against a stand-in hub."""

import json

import pytest
from omni2vec.data.types import DataError
from omni2vec.launch.push import check, push

from .hub import HEAD, standing_in

TOKEN = "hf_" + "Secret0Secret1Secret2"
CARD = (
    "---\nlicense: apache-2.0\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\n---\n# Model\n"
)
CONTENT = {
    "README.md": CARD.encode(),
    "config.json": b'{"model_type": "qwen2_vl"}',
    "model.safetensors": bytes(range(256)) * 40,
    "1_Pooling/config.json": b"{}",
    "done.json": b"{}",
}
GOES = sorted(set(CONTENT) - {"done.json"})


@pytest.fixture(autouse=True)
def no_stored_token_and_plain_uploads(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the stand-in stores whole files
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it is on this machine
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def release(tmp_path):
    for name, content in CONTENT.items():
        (tmp_path / "release" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "release" / name).write_bytes(content)
    return tmp_path / "release"


def test_a_dry_run_names_every_file_with_its_size_and_writes_nothing(release):
    lines = []
    with standing_in() as hub:
        shipment = push(release, "me/model", dry_run=True, token=TOKEN, endpoint=hub.url, say=lines.append)
        assert hub.writes == []
    assert [f.path for f in shipment.files] == GOES
    assert shipment.total == sum(len(CONTENT[name]) for name in GOES)
    assert any("10.2 kB  model.safetensors" in line for line in lines)
    assert lines[0] == "to me/model (is made, private)"


def test_a_dry_run_needs_no_hub(release):
    lines = []
    shipment = push(release, "me/model", dry_run=True, token=TOKEN, endpoint="http://127.0.0.1:9", say=lines.append)
    assert shipment.exists is None
    assert "the hub was not asked" in lines[0]


def test_what_arrives_is_the_folder_to_the_byte(release):
    with standing_in() as hub:
        shipment = push(release, "me/model", token=TOKEN, endpoint=hub.url, message="First", say=lambda line: None)
        assert hub.files["me/model"] == {name: CONTENT[name] for name in GOES}
        assert hub.private["me/model"]
        assert hub.messages == ["First"]
        assert {seen for _, path, seen in hub.seen if "/store/" not in path} == {f"Bearer {TOKEN}"}
    assert shipment.url.endswith("b" * 40)


def test_an_overwrite_is_asked_for_and_a_no_sends_nothing(release):
    asked = []
    with standing_in(me__model={"README.md": b"old", "extra.txt": b"x"}) as hub:
        with pytest.raises(DataError, match=r"1 files would be overwritten \(README.md\); nothing was sent"):
            push(
                release,
                "me/model",
                token=TOKEN,
                endpoint=hub.url,
                say=lambda line: None,
                ask=lambda q: bool(asked.append(q)),
            )
        assert asked == ["Overwrite 1 files?"]
        assert hub.writes == []
        assert hub.files["me/model"]["README.md"] == b"old"


@pytest.mark.parametrize("how", [{"yes": True}, {"ask": lambda question: True}])
def test_a_yes_overwrites_on_top_of_the_commit_that_was_seen_and_deletes_nothing(release, how):
    lines = []
    with standing_in(me__model={"README.md": b"old", "extra.txt": b"x"}) as hub:
        push(release, "me/model", token=TOKEN, endpoint=hub.url, say=lines.append, **how)
        assert hub.files["me/model"]["README.md"] == CARD.encode()
        assert hub.files["me/model"]["extra.txt"] == b"x"
        assert hub.parents == [HEAD]
    assert any("README.md  (overwrites)" in line for line in lines)
    assert "  stays there: extra.txt" in lines


def test_the_token_is_in_no_line_and_in_no_error(release, capsys):
    lines = []
    with standing_in() as hub:
        push(release, "me/model", token=TOKEN, endpoint=hub.url, say=lines.append)
        hub.broken = f"bad token {TOKEN}"
        with pytest.raises(DataError, match=r"(?s)me/model: the hub refused .*hf_\*\*\*") as caught:
            push(release, "me/model", token=TOKEN, endpoint=hub.url, say=lines.append)
    import traceback

    shown = "".join(traceback.format_exception(caught.value)) + "".join(lines) + "".join(capsys.readouterr())
    assert TOKEN not in shown


@pytest.mark.parametrize("stray", ["optimizer.pt", "pytorch_model.bin", ".cache/x.json", "state/rank0.safetensors.tmp"])
def test_a_stray_file_is_refused_by_name_before_the_hub_is_asked(release, stray):
    (release / stray).parent.mkdir(exist_ok=True)
    (release / stray).write_bytes(b"x")
    with standing_in() as hub:
        with pytest.raises(DataError, match=rf"1 files are no part of a release: {stray}"):
            push(release, "me/model", token=TOKEN, endpoint=hub.url, say=lambda line: None)
        assert hub.seen == []


def test_a_token_in_a_file_is_refused(release):
    (release / "README.md").write_text(CARD + f"token {TOKEN}")
    with pytest.raises(DataError, match=r"README.md: holds what looks like a hub token"):
        check(release)


def test_a_path_of_this_machine_is_refused_with_its_key(release):
    (release / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/data/models/qwen"}))
    with pytest.raises(DataError, match=r"adapter_config.json: base_model_name_or_path is a path of this machine"):
        check(release)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, "no model card"),
        ("# Model\n", "no metadata between two lines of dashes"),
        ("---\nlicense: mit\n---\n", "the metadata lacks library_name, pipeline_tag"),
        ("---\nlicense: [\n---\n", "is no YAML"),
        (
            CARD.replace("---\n# Model", "base_model: /data/base\n---\n# Model"),
            "base_model '/data/base' is no hub name",
        ),
    ],
)
def test_a_card_that_the_hub_cannot_read_is_refused(release, card, message):
    if card is None:
        (release / "README.md").unlink()
    else:
        (release / "README.md").write_text(card)
    with pytest.raises(DataError, match=message):
        check(release)


def test_a_folder_without_weights_and_a_wrong_name_are_refused(release):
    with pytest.raises(DataError, match="expected owner/name"):
        push(release, "model")
    (release / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no weights \(\*.safetensors\)"):
        check(release)
    with pytest.raises(DataError, match="no such folder"):
        check(release / "nowhere")
