"""A stream of prompts to vectors, in order: counted, sorted, packed by token budget, decoded one chunk ahead."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..data.chunks import Chunk, plan
from ..data.ranks import ALONE, Ranks
from ..data.types import Blob, Item, Part, Prompted, Text
from .types import Inputs

if TYPE_CHECKING:
    from rich.console import Console

    from .embedder import Embedder

WINDOW = 8192  # prompts that are counted and sorted together
_LINE_EVERY_S = 15.0  # where there is no terminal
SUFFIXES = {
    ".jpg": "image", ".jpeg": "image", ".png": "image", ".webp": "image", ".gif": "image", ".bmp": "image",
    ".tif": "image", ".tiff": "image", ".mp4": "video", ".mov": "video", ".mkv": "video", ".webm": "video",
    ".avi": "video", ".wav": "audio", ".flac": "audio", ".mp3": "audio", ".ogg": "audio", ".txt": "text",
}  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """How several ranks encode the same prompts together. run: a packed row to its vectors (n, D), where the weights
    may be in parts; total: the sum over ranks, in place."""

    ranks: Ranks
    run: Callable[[Inputs], Tensor]
    total: Callable[[Tensor], Tensor]


def encode(
    embedder: Embedder,
    prompts: Sequence[Prompted],
    *,
    progress: str = "",
    tokens: int | None = None,
    spread: Spread | None = None,
) -> Tensor:
    """(n, D) float32, L2-normalised, on the CPU, in the order given.

    tokens: per packed row; by default 16,384 on a GPU and 4,096 on a CPU, and never below the longest prompt. spread:
    shares the work over ranks, all of which call this with the same prompts and get the same vectors.
    """
    budget = tokens or (16384 if embedder.device.type == "cuda" else 4096)
    out = torch.zeros(len(prompts), embedder.dim)
    was = embedder.training
    embedder.eval()
    try:
        # Sharded weights are gathered in place, which tensors made under inference mode do not allow.
        with torch.no_grad() if spread else torch.inference_mode(), bar(progress, len(prompts)) as advance:
            for start in range(0, len(prompts), WINDOW):
                part = slice(start, start + WINDOW)
                _window(embedder, prompts[part], budget, out[part], advance, spread)
    finally:
        embedder.train(was)
    return out if spread is None else spread.total(out.to(embedder.device)).cpu()


def _window(
    embedder: Embedder, prompts: Sequence[Prompted], budget: int, out: Tensor, advance: Any, spread: Spread | None
) -> None:
    fmt, limits, dim = embedder.format, replace(embedder.limits, draft=False), embedder.settings.dim
    ranks = spread.ranks if spread else ALONE
    asked = [
        *prompts,
        *list(prompts[:1]) * (ranks.size - len(prompts)),
    ]  # one each at least
    costs = fmt.count(asked, [limits] * len(asked))
    chunks = plan(costs, max(budget, *(c.tokens for c in costs), 1), ranks.size)[ranks.rank]

    def collate(chunk: Chunk) -> Inputs:
        return fmt.collate([asked[i] for i in chunk.entries], [limits] * len(chunk.entries), chunk.dummies)

    with ThreadPoolExecutor(1) as ahead:
        pending = ahead.submit(collate, chunks[0])
        for i, chunk in enumerate(chunks):
            inputs = pending.result()
            if i + 1 < len(chunks):
                pending = ahead.submit(collate, chunks[i + 1])
            vectors = (spread.run(inputs) if spread else embedder(inputs.to(embedder.device)).vectors).float()
            vectors = vectors[: len(chunk.entries)]
            if dim:
                vectors = torch.nn.functional.normalize(vectors[:, :dim], dim=-1)
            own = [(k, e) for k, e in enumerate(chunk.entries) if e < len(prompts)]
            out[[e for _, e in own]] = vectors.cpu()[[k for k, _ in own]]
            advance(len(own) * ranks.size)


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives `advance(n)`: a bar on a terminal, a line now and then elsewhere, nothing without a label."""
    from rich.console import Console

    console = Console(stderr=True)
    if not label:
        yield lambda n: None
    elif console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True, console=console) as shown:
            task = shown.add_task(label, total=total)
            yield lambda n: shown.advance(task, n)
    else:
        yield _lines(label, total, console)


def _lines(label: str, total: int, console: Console) -> Callable[[int], None]:
    done, said = 0, time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, said
        done += n
        if time.monotonic() - said > _LINE_EVERY_S:
            said = time.monotonic()
            console.print(f"{label} {done:,}/{total:,}", markup=False, highlight=False)

    return advance


def as_items(inputs: Any) -> tuple[list[Item], bool]:
    """What `Embedder.encode` takes -> Items, and whether a single input was given."""
    single = not isinstance(inputs, (list, tuple)) and not (hasattr(inputs, "__next__"))
    return [_item(x, f"input {i}") for i, x in enumerate([inputs] if single else inputs)], single


def _item(value: Any, where: str) -> Item:
    if isinstance(value, Item):
        return value
    if isinstance(value, Mapping):
        parts = tuple(
            _part(kind, v, where) for kind, vs in value.items() for v in (vs if isinstance(vs, (list, tuple)) else [vs])
        )
        return Item(parts)
    if isinstance(value, Path):
        kind = SUFFIXES.get(value.suffix.lower())
        if kind is None:
            raise ValueError(f"{where}: {value} ends in {value.suffix!r}; known endings: {', '.join(SUFFIXES)}")
        return Item((_part(kind, value, where),))
    return Item((_part("text" if isinstance(value, str) else "image", value, where),))


_KINDS: dict[str, Literal["image", "video", "audio"]] = {"image": "image", "video": "video", "audio": "audio"}


def _part(kind: str, value: Any, where: str) -> Part:
    from ..data.parts import probe

    if kind == "text":
        if isinstance(value, Path):
            return Text(value.read_text(encoding="utf-8"))
        if not isinstance(value, str):
            raise ValueError(
                f"{where}: a text given as {type(value).__name__}; give a string or the path of a text file"
            )
        return Text(value)
    if kind not in _KINDS:
        raise ValueError(f"{where}: a part named {kind!r}; parts are text, image, video, audio")
    if isinstance(value, bytes):
        blob = Blob(value)
    elif isinstance(value, (str, Path)):
        if not Path(value).is_file():
            raise FileNotFoundError(f"{where}: no file {value}")
        blob = Blob(path=str(value))
    elif kind == "image" and hasattr(value, "save"):  # a PIL image; kept without loss
        buffer = io.BytesIO()
        (value if value.mode in ("RGB", "RGBA", "L") else value.convert("RGBA")).save(buffer, "PNG", compress_level=1)
        blob = Blob(buffer.getvalue())
    else:
        raise ValueError(
            f"{where}: a {kind} given as {type(value).__name__}; give bytes, a path or (image) a PIL image"
        )
    return probe(_KINDS[kind], blob, where)
