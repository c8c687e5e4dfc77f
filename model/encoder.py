"""Which encoder a name asks for: an embedder by folder or hub name, "open_clip:MODEL@WEIGHTS", or
"sentence_transformers:FOLDER" for what only that library can read."""

from __future__ import annotations

from pathlib import Path

from .types import Encoder


def load_encoder(name: str | Path) -> Encoder:
    """What `name` loads to. Raises FileNotFoundError or ValueError with the name and the remedy."""
    from .backbones import clip, sentence_tf
    from .embedder import Embedder

    if str(name).startswith(clip.PREFIX):
        return clip.Clip.load(str(name))
    if str(name).startswith(sentence_tf.PREFIX):
        return sentence_tf.SentenceTransformer.load(str(name))
    return Embedder.load(name)


def digest_of(name: str) -> str:
    """Names what stands behind a name, as a step records it: a folder by its content, a hub name by itself."""
    from .backbones.sentence_tf import PREFIX
    from .checkpoint import digest_of_folder

    found = digest_of_folder(name.removeprefix(PREFIX))
    return f"{PREFIX}{found}" if name.startswith(PREFIX) else found
