"""Releases of embedders with embedding tokens: every reader writes them at the tail of its prompts."""

import pytest
from omni2vec.data.types import DataError
from omni2vec.launch.release import Release
from omni2vec.launch.verify import vectors, verify
from omni2vec.model.embedder import Embedder
from omni2vec.model.lora import Lora, attach
from omni2vec.model.tokens import names, with_tokens

from .releases import READERS, here, one_thread, read, released, small

__all__ = ["one_thread"]


def test_all_readers_give_the_same_vectors_and_a_release_trains_on(tmp_path):
    pytest.importorskip("sentence_transformers")
    embedder = with_tokens(small(), 4)
    out = released(embedder, tmp_path)
    assert set(verify(out, vectors(embedder), run=here).cosines) == READERS
    again = Embedder.load(out, device="cpu")
    assert (again.settings.tokens, again.template) == (4, embedder.template)
    assert with_tokens(again, 4) is again


def test_raw_text_with_tokens_is_the_same_in_plain_transformers(tmp_path):
    raw = {"chat": "", "instruct": "front", "generation": False, "image": "", "video": ""}
    out = released(with_tokens(small(template=raw), 2), tmp_path, allow="omni2vec")
    found = verify(out, run=here)
    assert set(found.cosines) == READERS - {"sentence-transformers"}
    assert "".join(names(2)) in (out / "README.md").read_text()
    assert read(out / "omni2vec.json")["settings"]["tokens"] == 2


def test_an_adapter_alone_is_no_release_and_merged_it_is(tmp_path):
    base = Embedder.load(small().save(tmp_path / "base"), device="cpu")
    source = attach(with_tokens(base, 2), Lora(rank=2)).save(tmp_path / "trained")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="its base has no rows for the 2 embedding tokens"):
        Release("r", str(source), adapter=True, base_model="org/base").make(tmp_path / "a", lambda step: tmp_path)
    out = released(Embedder.load(source, device="cpu"), tmp_path)
    assert min(min(c.values()) for c in verify(out, run=here).cosines.values()) > 0.99999
