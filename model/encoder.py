"""Which encoder a name asks for: an embedder by folder or hub name, or "open_clip:MODEL@WEIGHTS"."""

from __future__ import annotations

from pathlib import Path

from .types import Encoder


def load_encoder(name: str | Path) -> Encoder:
    """What `name` loads to. Raises FileNotFoundError or ValueError with the name and the remedy."""
    from .backbones.clip import PREFIX, Clip
    from .embedder import Embedder

    if str(name).startswith(PREFIX):
        return Clip.load(str(name))
    return Embedder.load(name)
