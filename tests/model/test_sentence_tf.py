"""sentence-transformers models as encoders: the library's own vectors, prompts by side, digests."""

from pathlib import Path

import pytest
import torch
from omni2vec.data.types import DataError, Item
from omni2vec.model.encode import as_items
from omni2vec.model.encoder import digest_of, load_encoder

from .small import clip, picture

sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
pytestmark = pytest.mark.installed
TEXTS = ["a red circle", "the blue square above", "left"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Static vectors of words, which Embedder.load cannot read."""
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = sorted({w for t in TEXTS for w in t.split()} | {"find", ":"})
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0} | {w: i + 1 for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    static = StaticEmbedding(tokenizer, embedding_weights=torch.randn(len(words) + 1, 16).numpy())
    path = tmp_path_factory.mktemp("st") / "static"
    prompts = {"query": "find : ", "document": ""}
    sentence_transformers.SentenceTransformer(modules=[static], prompts=prompts, device="cpu").save(str(path))
    return path


def test_vectors_are_the_librarys_with_its_prompts_by_side(folder):
    encoder = load_encoder(f"sentence_transformers:{folder}")
    plain = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    items = [Item.text(t) for t in TEXTS]
    for side, given in (("query", [f"find : {t}" for t in TEXTS]), ("target", TEXTS)):
        expected = torch.nn.functional.normalize(torch.from_numpy(plain.encode(given)), dim=-1)
        assert torch.allclose(encoder.encode_items(items, side=side), expected, atol=1e-6)
    told = encoder.encode_items(items, side="query", instruction="left ")
    assert torch.allclose(
        told, torch.nn.functional.normalize(torch.from_numpy(plain.encode([f"left {t}" for t in TEXTS])))
    )
    assert encoder.encode_items([]).shape == (0, 16)


def test_the_digest_changes_with_a_weight_and_the_name_with_a_file(folder, tmp_path):
    name = f"sentence_transformers:{folder}"
    encoder, again = load_encoder(name), load_encoder(name)
    assert encoder.digest == again.digest and digest_of(name) == digest_of(name) != digest_of(str(folder))
    with torch.no_grad():
        next(again.model.parameters()).add_(1.0)
    assert encoder.digest != again.digest


def test_what_it_cannot_be_shown_is_named(folder):
    import numpy as np

    rng = np.random.default_rng(0)
    encoder = load_encoder(f"sentence_transformers:{folder}")
    with pytest.raises(DataError, match="input 1: a video"):
        encoder.encode_items([Item.text("left"), as_items({"video": clip(rng, 2, 40, 40)})[0][0]])
    two = as_items({"image": [picture(rng, 40, 40), picture(rng, 40, 40)]})[0][0]
    with pytest.raises(DataError, match="input 0: a second picture"):
        encoder.encode_items([two])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_encoder("sentence_transformers:./nowhere")
