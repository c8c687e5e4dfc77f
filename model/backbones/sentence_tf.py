"""A sentence-transformers model as an Encoder, run by that library: a teacher or a baseline in a layout of its own.

Embedder.load reads many of these folders itself, packs, and trains them; this is for the others (Dense modules,
routers, static embeddings). It encodes texts and pictures and is not trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.types import DataError, Events, Image, Item, Side, Text

PREFIX = "sentence_transformers:"
BATCH = 64  # Items; sorted by length within each call


class SentenceTransformer:
    """An Encoder (model.types) over a sentence_transformers.SentenceTransformer."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model.eval(), name

    @classmethod
    def load(cls, name: str, device: str | torch.device | None = None) -> SentenceTransformer:
        """name: a folder or hub name, "sentence_transformers:" in front or not. Code of the folder's own is not run."""
        try:
            import sentence_transformers
        except ImportError as error:
            raise ImportError(
                'sentence-transformers is not installed: pip install "omni2vec[sentence-transformers]"'
            ) from error
        plain = name.removeprefix(PREFIX)
        if not plain or (plain[0] in "./~" and not Path(plain).expanduser().is_dir()):
            raise FileNotFoundError(f"{name}: no such folder; expected {PREFIX}FOLDER, or a name on the hub")
        try:
            model = sentence_transformers.SentenceTransformer(str(plain), device=str(device) if device else None)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ValueError(f"{name}: sentence-transformers cannot load it: {error}") from error
        return cls(model, plain)

    def encode_items(
        self, items: Iterable[Item], *, side: Side = "query", instruction: str = "", progress: str = ""
    ) -> Tensor:
        """See model.types.Encoder. An instruction stands in front of the text as it is; without one, the folder's own
        prompt for this side does, where it has one. Texts of an Item are read as one."""
        given = [_input(item, f"input {i}") for i, item in enumerate(items)]
        width = int(self.model.get_embedding_dimension() or 0)
        if not given:
            return torch.empty(0, width)
        encode = self.model.encode_query if side == "query" else self.model.encode_document
        with torch.inference_mode():
            vectors = encode(
                given,
                prompt=instruction or None,
                batch_size=BATCH,
                convert_to_tensor=True,
                show_progress_bar=bool(progress),
            )
        return F.normalize(vectors.float(), dim=-1).cpu()

    @property
    def digest(self) -> str:
        """See model.types.Encoder: 32 hex digits over the prompts, the modules and every weight."""
        told = repr([sorted(self.model.prompts.items()), self.model.default_prompt_name, str(self.model)])
        h = blake2b(told.encode(), digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            h.update(name.encode())
            h.update(memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
        return h.hexdigest()


def _input(item: Item, where: str) -> Any:
    """What the library takes: a string, a PIL picture, or a mapping of both."""
    texts: list[str] = []
    pictures: list[Any] = []
    for part in item.parts:
        if isinstance(part, Text):
            texts.append(part.text)
        elif isinstance(part, Events):
            texts += [f"{e.action} {e.text}" for e in part.events]
        elif isinstance(part, Image) and not pictures:
            pictures.append(_picture(part, where))
        else:
            kind = "second picture" if isinstance(part, Image) else type(part).__name__.lower()
            raise DataError(f"{where}: a {kind}; a sentence-transformers model is shown texts and one picture an item")
    text = "\n".join(texts)
    if not pictures:
        return text
    return {"text": text, "image": pictures[0]} if text else pictures[0]


def _picture(image: Image, where: str) -> Any:
    from torchvision.transforms.functional import to_pil_image

    from ...data.parts.image import decode

    return to_pil_image(decode(image, where))
