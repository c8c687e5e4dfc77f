"""A release folder held against itself: omni2vec, sentence-transformers and plain transformers, in fresh processes.

What runs is the code that the model card shows. All of it runs on the CPU in float32, so that only the function is
compared: template, generation prompt, place of the instruction, padding, pixels, pooling.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.types import DataError
from ..model.checkpoint import RECORD, settings_from
from ..model.template import Template
from .snippets import PICTURE, Reader

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.embedder import Embedder

LEAST = 0.99999  # cosine
INSTRUCTION = "Find the picture that shows it."
SAYINGS = ("a red circle above the blue square", "What is to the left of it?")
TIMEOUT_S = 3600.0
CLIP = "clip.webp"
Run = Callable[
    [Path, Path], list[list[float]]
]  # (script, folder) -> vectors; it runs with the script's folder as its own

# What runs behind the card's code. `cases` is a list of (text, picture or None, instruction); `out` takes the vectors.
_BEHIND = {
    "omni2vec": """
embedder.float()
for text, picture, instruction in cases:
    given = {"image": picture, "text": text} if picture and text else picture or text
    out.append(embedder.encode(given, instruction=instruction))
if clip:
    out.append(embedder.encode({"video": clip}))
""",
    "sentence-transformers": """
model.float()
for text, picture, instruction in cases:
    given = {"image": picture, "text": text} if picture and text else picture or text
    said = frame.replace("{instruction}", instruction) if instruction else None
    out.append(model.encode([given], prompt=said, show_progress_bar=False)[0])
if clip:
    import numpy
    film = _Image.open(clip)
    frames = []
    for i in range(film.n_frames):
        film.seek(i)
        frames.append(numpy.asarray(film.convert("RGB")))
    rate = 1000 / film.info["duration"]
    meta = {"fps": rate, "total_num_frames": len(frames), "duration": len(frames) / rate}
    out.append(model.encode([{"video": {"array": numpy.stack(frames), "video_metadata": meta}}])[0])
""",
    "transformers": """
model.float()
for text, picture, instruction in cases:
    extra = {keyword: frame.replace("{instruction}", instruction)} if instruction else {}
    parts = [{"type": "image", "image": picture}] * bool(picture) + [{"type": "text", "text": text}] * bool(text)
    out.append(embed(*parts, **extra) if style == "parts" else embed(text, *[picture] * (style == "placed"), **extra))
""",
}
_AROUND = """
import json, sys
from PIL import Image as _Image

_given = json.loads(open("given.json", encoding="utf-8").read())
style, keyword, frame = _given["style"], _given["keyword"], _given["frame"]
clip = _given["clip"]
cases = [(t, _Image.open(p) if p else None, i) for t, p, i in _given["cases"]]
out = []
{behind}
json.dump([[float(x) for x in v] for v in out], open(sys.argv[1], "w"))
"""


@dataclass(frozen=True)
class Verified:
    """Cosines by reader and case; `missing`: readers that were not run, and why.

    clips: the cosine of a clip in sentence-transformers to omni2vec's; None where there are none, or no such reader.
    """

    cosines: Mapping[str, Mapping[str, float]]
    missing: Mapping[str, str] = field(default_factory=dict)
    clips: float | None = None

    @property
    def least(self) -> float:
        return min(c for cases in self.cosines.values() for c in cases.values())


def cases(reader: Reader) -> dict[str, tuple[str, str, str]]:
    """name -> (text, picture's file, instruction)."""
    words, question = SAYINGS
    out = {"text": (words, "", ""), "text, instruction": (words, "", INSTRUCTION)}
    if reader.pictures:
        out |= {
            "picture": ("", PICTURE, ""),
            "picture, instruction": ("", PICTURE, INSTRUCTION),
            "both": (question, PICTURE, ""),
            "both, instruction": (question, PICTURE, INSTRUCTION),
        }
    return out


def verify(
    folder: str | Path, reference: Mapping[str, Tensor] | None = None, at_least: float = LEAST, run: Run | None = None
) -> Verified:
    """Every reader that the folder is made for, in a fresh process each, against `reference`.

    reference: case -> vector (D,), of the model that was released (`vectors`); without it, what omni2vec reads from
    the folder. run: how to run a reader's code, by default `fresh`. Raises DataError where a reader fails, or a cosine
    is below `at_least`, naming both.
    """
    folder = Path(folder).resolve()
    reader = reader_of(folder)
    snippets, missing = _readers(folder, reader)
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as desk:
        _prepare(Path(desk), reader)
        for name, code in snippets.items():
            script = Path(desk) / f"read_{name.replace('-', '_')}.py"
            script.write_text(code + _AROUND.replace("{behind}", _BEHIND[name]), encoding="utf-8")
            found[name] = (run or fresh)(script, folder)
    clips = None
    if reader.template.video and "sentence-transformers" in found:
        clips = _cosine(found["sentence-transformers"][-1], found["omni2vec"][-1])
    names = list(cases(reader))
    read = {name: dict(zip(names, given[: len(names)], strict=True)) for name, given in found.items()}
    right: Mapping[str, Sequence[float] | Tensor] = reference or read["omni2vec"]
    cosines = {name: {case: _cosine(v, right[case]) for case, v in given.items()} for name, given in read.items()}
    for name, values in cosines.items():
        for case, cosine in values.items():
            if not cosine >= at_least:
                raise DataError(
                    f"{folder}: {name} gives another vector for ({case}): cosine {cosine:.6f}, expected {at_least} or "
                    "more. This folder is not the same function in all its readers; it must not be published"
                )
    return Verified(cosines, missing, clips)


def _cosine(a: Sequence[float] | Tensor, b: Sequence[float] | Tensor) -> float:
    import torch

    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def vectors(embedder: Embedder) -> dict[str, Tensor]:
    """case -> vector of an embedder in memory."""
    from PIL import Image

    reader = Reader("", embedder.template, embedder.settings)
    with tempfile.TemporaryDirectory() as desk:
        picture(Path(desk) / PICTURE)
        out = {}
        for name, (text, file, instruction) in cases(reader).items():
            parts: dict[str, Any] = {"image": Image.open(Path(desk) / file)} if file else {}
            parts |= {"text": text} if text else {}
            out[name] = embedder.encode(parts, instruction=instruction)
    return out


def reader_of(folder: Path, at: str = "") -> Reader:
    """What the snippets of this folder are written for. `at`: the name that they load, by default the folder."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    adapter: dict[str, Any] = {}
    if (folder / "adapter_config.json").exists():
        adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return Reader(
        at or str(folder),
        Template.from_dict(record["template"]),
        settings_from(record["settings"]),
        str(adapter.get("base_model_name_or_path") or ""),
        str(adapter.get("revision") or ""),
    )


def _readers(folder: Path, reader: Reader) -> tuple[dict[str, str], dict[str, str]]:
    snippets, missing = {"omni2vec": reader.omni2vec()}, {}
    if not (folder / "modules.json").exists():
        missing["sentence-transformers"] = "the folder has no files for it"
    elif find_spec("sentence_transformers") is None:
        missing["sentence-transformers"] = 'not installed here, so not checked: pip install "omni2vec[eval]"'
    else:
        snippets["sentence-transformers"] = reader.sentence_transformers()
    if code := reader.transformers():
        snippets["transformers"] = code
    else:
        missing["transformers"] = "its pooling is a part of omni2vec"
    return snippets, missing


def picture(path: Path) -> None:
    """A small picture with edges and gradients, drawn, not random: resizing must agree on it."""
    from PIL import Image, ImageDraw

    drawn = Image.linear_gradient("L").resize((150, 110)).convert("RGB")
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((12, 20, 70, 78), fill=(220, 40, 30))
    pen.rectangle((85, 30, 140, 95), fill=(30, 60, 200), outline=(255, 255, 255), width=3)
    drawn.save(path)


def _clip(path: Path) -> None:
    """A disc that crosses a frame; ten frames at four a second, so that sampling must take uneven steps."""
    from PIL import Image, ImageDraw

    frames = []
    for i in range(10):
        frame = Image.linear_gradient("L").resize((112, 84)).convert("RGB")
        ImageDraw.Draw(frame).ellipse((4 + 8 * i, 20, 28 + 8 * i, 44), fill=(220, 40, 30))
        frames.append(frame)
    frames[0].save(path, "WEBP", save_all=True, append_images=frames[1:], duration=250, lossless=True)


def _prepare(desk: Path, reader: Reader) -> None:
    picture(desk / PICTURE)
    _clip(desk / CLIP)
    template = reader.template
    given = {
        "cases": list(cases(reader).values()),
        "clip": CLIP if reader.template.video else "",
        "style": "parts" if reader.pictures and template.chat else "placed" if reader.pictures else "text",
        "keyword": "instruction" if template.chat or reader.pictures else "prompt",
        "frame": "{instruction}" if template.chat or reader.pictures else template.frame + template.separator,
    }
    (desk / "given.json").write_text(json.dumps(given, ensure_ascii=False), encoding="utf-8")


def fresh(script: Path, folder: Path) -> list[list[float]]:
    """Runs a reader's code in a process of its own, on the CPU; its vectors, in the order of the cases."""
    out = script.with_suffix(".json")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if (folder / "config.json").exists():
        environment["HF_HUB_OFFLINE"] = "1"  # everything is in the folder
    done = subprocess.run(
        [sys.executable, str(script), str(out)],
        cwd=script.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise DataError(f"{folder}: {script.stem} cannot load or run this folder by the card's own code:\n{tail}")
    found: list[list[float]] = json.loads(out.read_text(encoding="utf-8"))
    return found
