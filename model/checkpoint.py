"""Embedder folders: what is saved, what is loaded, by whose rules. Safetensors and JSON only.

A folder of ours is a stock Hugging Face checkpoint (config, weights, processor) with `omni2vec.json` (settings and
template) and, where there are parts that no stock class has, `omni2vec.safetensors`. Any other folder is read by the
layout that it has: a released embedder keeps its own template, pooling and normalisation.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.types import Limits
from . import tokens
from .embedder import Embedder, Fixed, Learned, Settings
from .quantize import kind_of, quantize_model
from .template import Template
from .types import Attention

RECORD = "omni2vec.json"
WEIGHTS = "omni2vec.safetensors"
ADAPTER = "adapter_config.json"


def snapshot(path: str | Path) -> Path:
    """A local folder (absolute: an adapter records where its base lies), or the snapshot of a hub repository."""
    folder = Path(path)
    if folder.is_dir():
        return folder.absolute()
    if folder.is_absolute() or str(path).startswith(".") or str(path).count("/") != 1:
        raise FileNotFoundError(
            f"no model folder {path}; give a folder with config.json, or a hub name such as org/model"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "**/*.json", "*.md"]
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except Exception as error:
        raise FileNotFoundError(
            f"{path} is neither a folder here nor a hub repository that can be reached: {error}"
        ) from error


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    attention: Attention | None = None,
    dim: int | None = None,
    trust_remote_code: bool = False,
) -> Embedder:
    """See Embedder.load."""
    folder = snapshot(path)
    base = folder
    if (folder / ADAPTER).is_file():
        base = snapshot(json.loads((folder / ADAPTER).read_text())["base_model_name_or_path"])
    template, settings = _rules(folder, base)
    if attention is not None:
        settings = replace(settings, attention=attention)
    if dim is not None:
        settings = replace(settings, dim=dim)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    backbone: Any = _backbone(base, template, settings, _dtype(dtype, place), trust_remote_code)
    if settings.tokens:
        tokens.add(backbone, settings.tokens)  # an adapter's base was saved without them
    if (rounded := _record(folder).get("quantized")) and base != folder:
        quantize_model(backbone.model, rounded, place)  # the base that the adapter was trained on
    adapter = _adapter(backbone, folder) if base != folder else None
    embedder = Embedder(backbone, template, settings, adapter)
    if (folder / WEIGHTS).is_file():
        from safetensors.torch import load_file

        missing, unexpected = embedder.load_state_dict(load_file(folder / WEIGHTS), strict=False)
        wanted = set(own_state(embedder)) - {"log_step"}  # of a checkpoint from before it had one: its start
        if unexpected or wanted & set(missing):
            raise ValueError(
                f"{folder / WEIGHTS}: holds {sorted(unexpected)} too much, lacks {sorted(wanted & set(missing))}"
            )
    return embedder.to(place).eval()


def _dtype(dtype: torch.dtype | str | None, place: torch.device) -> torch.dtype:
    if isinstance(dtype, str):
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"dtype={dtype!r}: expected float32, bfloat16 or float16")
        return found
    return dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)


def _record(folder: Path) -> dict[str, Any]:
    """Our record in the folder; empty where there is none."""
    found: dict[str, Any] = json.loads((folder / RECORD).read_text()) if (folder / RECORD).is_file() else {}
    return found


def _rules(folder: Path, base: Path) -> tuple[Template, Settings]:
    """Template and settings: our record, or the layout of a foreign folder."""
    if record := _record(folder):
        return Template.from_dict(record["template"]), settings_from(record["settings"])
    from .layouts import layout_of

    layout = layout_of(folder, base)
    settings = Settings(
        pooling=layout.pooling,
        attention=layout.attention,
        mask_instruction=layout.mask_instruction,
        normalise=layout.normalise,
        dim=layout.truncate,
        limits=layout.limits,
    )
    return layout.template, settings


def _backbone(base: Path, template: Template, settings: Settings, dtype: torch.dtype, trust: bool) -> nn.Module:
    if not (base / "config.json").is_file():
        raise FileNotFoundError(f"{base}: no config.json; is this a model folder?")
    kind = json.loads((base / "config.json").read_text()).get("model_type", "")
    from safetensors import SafetensorError

    from .backbones import qwen_vl

    try:
        if kind in qwen_vl.KINDS:
            return qwen_vl.QwenVL.load(base, template, dtype, settings.mask_instruction)
        from .backbones.text import TextLM

        text: nn.Module = TextLM.load(base, template, dtype, settings.mask_instruction, trust_remote_code=trust)
        return text
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{base}: the checkpoint cannot be read ({error}); was the download or copy cut short?"
        ) from error


def _adapter(backbone: Any, folder: Path) -> Any:
    """The adapter of `folder` around the backbone's stock model, in place."""
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder}: adapter_config.json stands without adapter_model.safetensors; other files of weights may hold "
            "code, so they are not read: convert them with peft, or copy the folder again"
        )
    return PeftModel.from_pretrained(backbone.model, str(folder), is_trainable=True)


def settings_from(raw: dict[str, Any]) -> Settings:
    """Settings from their JSON form."""
    raw = dict(raw)
    scale = raw.pop("scale")
    limits = Limits(**raw.pop("limits"))
    matryoshka = tuple(raw.pop("matryoshka"))
    return Settings(**raw, matryoshka=matryoshka, limits=limits, scale=(Learned if "max" in scale else Fixed)(**scale))


def record(embedder: Embedder) -> dict[str, Any]:
    """What `omni2vec.json` holds."""
    from .. import __version__

    found = {"omni2vec": __version__, "settings": asdict(embedder.settings), "template": embedder.template.to_dict()}
    rounded = kind_of(embedder.base.model)
    return {**found, "quantized": rounded} if rounded else found


def own_state(embedder: Embedder) -> dict[str, Tensor]:
    """Weights that no stock class holds: pooling, projection, temperature, step."""
    return {k: v.detach().cpu().contiguous() for k, v in embedder.state_dict().items() if not k.startswith("backbone.")}


def save(embedder: Embedder, folder: Path) -> Path:
    """See Embedder.save. An existing folder is replaced only once the new one is whole."""
    from safetensors.torch import save_file

    if embedder.adapter is not None and not embedder.adapter.active_peft_config.base_model_name_or_path:
        raise ValueError(
            f"{folder}: the adapter stands on weights that are in no folder (made or changed in memory), so it could "
            "not be loaded again; save `omni2vec.model.lora.merged(embedder)`"
        )
    if embedder.adapter is None and (rounded := kind_of(embedder.base.model)):
        raise ValueError(
            f"{folder}: the model is in {rounded}, which only a base of adapters is saved as; save "
            "`omni2vec.model.lora.merged(embedder)`, full weights of the same values"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, since someone may well keep a model of theirs in `best.old` beside `best`.
    aside, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    if embedder.adapter is not None:
        # Embeddings that grew for a few tokens are made again from the base: never whole beside an adapter.
        whole = False if embedder.settings.tokens else "auto"
        embedder.adapter.save_pretrained(str(aside), safe_serialization=True, save_embedding_layers=whole)
    else:
        stock: Any = embedder.base.model
        stock.save_pretrained(str(aside), safe_serialization=True)
    processor = embedder.backbone.processor
    processor.save_pretrained(str(aside))
    (aside / RECORD).write_text(json.dumps(record(embedder), indent=2, ensure_ascii=False))
    save_file(own_state(embedder), aside / WEIGHTS)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old)
    else:
        aside.rename(folder)
    return folder


def digest_of(embedder: Embedder) -> str:
    """32 hex digits over settings, template, every weight, and how pixels are normalised."""
    h = blake2b(digest_size=16)
    settings = {k: v for k, v in record(embedder).items() if k != "omni2vec"}
    for name in ("tokens", "int8"):  # where there are none, the digest is that of before there were any
        if not settings["settings"][name]:
            del settings["settings"][name]
    h.update(json.dumps(settings, sort_keys=True).encode())
    pixels = {f"pixels.{k}": v for k, v in embedder.backbone.named_buffers(recurse=False)}
    for name, tensor in sorted({**embedder.state_dict(), **pixels}.items()):
        h.update(name.encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        h.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
    return h.hexdigest()


def digest_of_folder(path: str) -> str:
    """Names what a model folder holds: the content of every file that loading may read, those of modules in its
    folders too. A hub name stands for itself."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    h = blake2b(digest_size=16)
    read = (".json", ".safetensors", ".jinja", ".txt", ".model")
    inside = (f for f in folder.rglob("*") if f.suffix in read and "checkpoints" not in f.relative_to(folder).parts)
    for file in sorted(inside):
        h.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                h.update(block)
    return h.hexdigest()
