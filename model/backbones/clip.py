"""open_clip dual encoders as an Encoder: a baseline for retrieval, and a tower that can be frozen (arXiv:2103.00020).

A dual encoder has one vector for a text and one for a picture. An Item of several parts is the sum of its parts' unit
vectors (score fusion of UniIR, arXiv:2311.17136). It was made for captions: instructions are not shown to it. It
encodes and is not trained, so pictures are always decoded whole, and seen through open_clip's own transform.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.types import DataError, Events, Image, Item, Side, Text, Video
from .patches import check_aspect

PREFIX = "open_clip:"
FRAMES = 8  # of a clip, evenly spaced
BATCH = 64  # Items


class Clip:
    """An Encoder (model.types) over an open_clip model, its picture transform and its tokenizer."""

    def __init__(self, model: Any, transform: Any, tokenizer: Any, name: str) -> None:
        """transform: a PIL picture -> (3, H, W). tokenizer: texts -> (n, context) int64."""
        self.model = model.eval()
        self.transform = transform
        self.tokenizer = tokenizer
        self.name = name
        self.width = self.texts(["a"]).shape[1]

    @classmethod
    def load(cls, name: str, device: str | torch.device | None = None) -> Clip:
        """name: "ViT-B-32@laion2b_s34b_b79k" (a model and its weights: a tag, or a file), "hf-hub:org/name" or
        "local-dir:folder", all as open_clip knows them; "open_clip:" may stand in front."""
        try:
            import open_clip
        except ImportError as error:
            raise ImportError('open_clip is not installed: pip install "omni2vec[clip]"') from error
        kind, _, weights = name.removeprefix(PREFIX).partition("@")
        if not weights and not kind.startswith(("hf-hub:", "local-dir:")):
            known = ", ".join(open_clip.list_pretrained_tags_by_model(kind)) or "none: no such model"
            raise ValueError(f"{name}: say which weights, as in {kind}@TAG; open_clip knows for {kind}: {known}")
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            model, _, transform = open_clip.create_model_and_transforms(kind, pretrained=weights or None, device=place)
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(f"{name}: open_clip cannot load it: {error}") from error
        return cls(model, transform, open_clip.get_tokenizer(kind), name.removeprefix(PREFIX))

    @property
    def device(self) -> torch.device:
        place: torch.device = next(self.model.parameters()).device
        return place

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, D) float32, unit length; a text longer than the model's context is cut by its tokenizer."""
        with torch.inference_mode():
            return F.normalize(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float(), dim=-1)

    def pictures(self, pixels: Sequence[Tensor]) -> Tensor:
        """uint8 (3, H, W) each -> (n, D) float32, unit length."""
        return self._seen([self._transformed(p) for p in pixels])

    def _transformed(self, pixels: Tensor) -> Tensor:
        from torchvision.transforms.functional import to_pil_image

        out: Tensor = self.transform(to_pil_image(pixels))
        return out

    def _seen(self, transformed: Sequence[Tensor]) -> Tensor:
        with torch.inference_mode():
            return F.normalize(self.model.encode_image(torch.stack(list(transformed)).to(self.device)).float(), dim=-1)

    def encode_items(
        self, items: Iterable[Item], *, side: Side = "query", instruction: str = "", progress: str = ""
    ) -> Tensor:
        """See model.types.Encoder. Texts of an Item are read as one; a clip is the sum of its frames."""
        from rich.progress import track

        found = list(items)
        starts = range(0, len(found), BATCH)
        shown = track(starts, progress, disable=not progress, transient=True)
        return torch.cat([torch.empty(0, self.width), *(self._batch(found[k : k + BATCH], k).cpu() for k in shown)])

    def _batch(self, items: Sequence[Item], first: int) -> Tensor:
        said = {i: text for i, item in enumerate(items) if (text := _words(item))}
        total = torch.zeros(len(items), self.width, device=self.device)
        if said:
            total.index_add_(0, torch.tensor(list(said), device=self.device), self.texts(list(said.values())))
        seen: set[int] = set()
        frames = (
            (i, self._transformed(pixels), weight)  # at once: only one picture or frame is held at its own size
            for i, item in enumerate(items)
            for pixels, weight in _frames(item, f"input {first + i}")
        )
        while some := list(islice(frames, BATCH)):
            owner = torch.tensor([i for i, _, _ in some], device=self.device)
            weights = torch.tensor([[w] for _, _, w in some], device=self.device)
            total.index_add_(0, owner, self._seen([p for _, p, _ in some]) * weights)
            seen |= {i for i, _, _ in some}
        empty = [i for i in range(len(items)) if i not in said and i not in seen]
        if empty:
            raise DataError(
                f"input {first + empty[0]}: nothing that {self.name} can see: it takes texts, pictures and clips"
            )
        return F.normalize(total, dim=-1)

    @property
    def digest(self) -> str:
        """See model.types.Encoder: 32 hex digits over name and every weight."""
        h = blake2b(self.name.encode(), digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            h.update(name.encode())
            h.update(memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
        return h.hexdigest()


def _words(item: Item) -> str:
    """The Item's texts as one, and what a person did, newest first: a dual encoder cuts the end of a long text."""
    words = []
    for part in item.parts:
        if isinstance(part, Text):
            words.append(part.text)
        elif isinstance(part, Events):
            words += [f"{e.action} {e.text}" for e in reversed(part.events)]
    return " ".join(w for w in words if w)


def _frames(item: Item, where: str) -> Iterator[tuple[Tensor, float]]:
    """Pixels of the Item's pictures and clips with their weights: the frames of one clip weigh as much as a picture."""
    from ...data.parts import image, video

    for part in item.parts:
        if isinstance(part, Image | Video):
            _check(part, where)
        if isinstance(part, Image):
            yield image.decode(part, where), 1.0
        elif isinstance(part, Video):
            count = min(FRAMES, part.frames)
            chosen = sorted({i * part.frames // count for i in range(count)})
            for frame in video.load(part, chosen, where):
                yield frame[..., :3].permute(2, 0, 1), 1 / len(chosen)
        elif not isinstance(part, Text | Events):
            raise DataError(f"{where}: open_clip has no ears for {type(part).__name__.lower()}; use a model that has")


def _check(part: Image | Video, where: str) -> None:
    """The transform makes the shorter side a fixed size, and so a sliver enormous."""
    try:
        check_aspect(part.width, part.height)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
