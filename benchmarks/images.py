"""JPEG bytes to a backbone's patches on one core: ours (`exact`, `draft`) against Qwen2-VL's own fast processor.

    python benchmarks/images.py [--quick] [--record] [--tokens 336]

The fast (torchvision-backed) processor is fed by Pillow, as trainers feed it; `vs_torchvision_fed` is against the same
fed by torchvision's decoder. Agreement is asserted first: `exact` within one grey level everywhere, `draft` within one
level in the mean, and the cosine of a tiny Qwen2-VL's vectors above 0.999. Pictures: eight 1280 x 960 JPEGs of quality
85, smooth noise at all scales, edges and grain, made here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import torch
from measure import Pairs, median, pairs, ratio_interval, record
from omni2vec.data.types import Blob, Image
from omni2vec.model.backbones import patches
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

WIDTH, HEIGHT = 1280, 960
GEOMETRY = patches.Geometry(patch=14, merge=2, temporal=2)
MEASURE_S = 1.0  # of each variant in one process


def picture(seed: int, grain: float) -> bytes:
    """One JPEG: noise at seven scales, fainter the finer as in photographs, sixty edges, a lens, grain."""
    rng = np.random.default_rng(seed)
    scene = torch.full((1, 3, HEIGHT, WIDTH), 128.0)
    for cell in (320, 160, 80, 40, 20, 10, 5):
        noise = torch.from_numpy(rng.normal(size=(1, 3, HEIGHT // cell, WIDTH // cell)).astype(np.float32))
        noise = 1.3 * noise.mean(1, keepdim=True) + 0.25 * noise  # mostly grey
        scene += 26 * (cell / 320) ** 0.35 * interpolate(noise, (HEIGHT, WIDTH), mode="bicubic")
    canvas = PIL.Image.fromarray(scene[0].permute(1, 2, 0).clamp(0, 255).byte().numpy())
    draw = PIL.ImageDraw.Draw(canvas, "RGBA")
    for _ in range(60):
        centre, radius = rng.uniform((0, 0), (WIDTH, HEIGHT)), rng.uniform(20, 200)
        corners = [tuple(centre + radius * np.array([np.cos(t), np.sin(t)])) for t in np.sort(rng.uniform(0, 6.28, 5))]
        draw.polygon(corners, fill=(*(int(c) for c in rng.integers(0, 256, 3)), int(rng.integers(60, 200))))
    lens = np.asarray(canvas.filter(PIL.ImageFilter.GaussianBlur(1.0))).astype(np.float32)
    lens += rng.normal(size=(HEIGHT, WIDTH, 1)) * grain
    out = BytesIO()
    PIL.Image.fromarray(lens.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


def ours(data: bytes, max_pixels: int, draft: bool) -> Tensor:
    height, width = patches.fit(WIDTH, HEIGHT, GEOMETRY.factor, 56 * 56, max_pixels)
    return patches.of_image(Image(Blob(data), WIDTH, HEIGHT), height, width, GEOMETRY, draft, "benchmark")


def processor(max_pixels: int) -> Any:
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": max_pixels})


def stock(process: Any, data: bytes) -> Tensor:
    """(n, 1176) float32, normalised."""
    values: Tensor = process(images=[PIL.Image.open(BytesIO(data)).convert("RGB")], return_tensors="pt")["pixel_values"]
    return values


def stock_fed_by_torchvision(process: Any, data: bytes) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    values: Tensor = process(images=[pixels], return_tensors="pt")["pixel_values"]
    return values


def rate(work: Callable[[bytes], Tensor], jpegs: list[bytes]) -> float:
    """Pictures a core-second: the median over passes, after one to warm up. Waiting for a busy core does not count."""
    passes: list[float] = []
    until = time.perf_counter() + MEASURE_S
    while len(passes) < 3 or time.perf_counter() < until:
        start = time.process_time()
        for data in jpegs:
            work(data)
        passes.append(time.process_time() - start)
    return len(jpegs) / median(passes[1:])


def side(name: str, folder: Path, max_pixels: int) -> dict[str, float]:
    """What one fresh process measures."""
    torch.set_num_threads(1)
    jpegs = [p.read_bytes() for p in sorted(folder.glob("*.jpg"))]
    if name == "ours":
        return {
            "draft": rate(lambda data: ours(data, max_pixels, True), jpegs),
            "exact": rate(lambda data: ours(data, max_pixels, False), jpegs),
        }
    process = processor(max_pixels)
    return {
        "pillow": rate(lambda data: stock(process, data), jpegs),
        "torchvision": rate(lambda data: stock_fed_by_torchvision(process, data), jpegs),
    }


def tiny_qwen() -> Any:
    """Qwen2-VL's base model, two layers, random weights (seed 0)."""
    from transformers import Qwen2VLConfig, Qwen2VLModel

    torch.manual_seed(0)
    text = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
    tower = {"embed_dim": 64, "hidden_size": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    ids = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    return Qwen2VLModel(Qwen2VLConfig(text_config=text, vision_config=tower, **ids)).eval()


@torch.no_grad()
def vector(model: Any, normalised: Tensor, grid: Tensor) -> Tensor:
    """The last token's state behind one picture, (64,)."""
    count = len(normalised) // GEOMETRY.merge**2
    ids = torch.tensor([[1, 62, *[60] * count, 63, 2]])
    kinds = (ids == 60).long()
    out = model(input_ids=ids, pixel_values=normalised, image_grid_thw=grid, mm_token_type_ids=kinds)
    state: Tensor = out.last_hidden_state[0, -1]
    return state


def agreement(jpegs: list[bytes], max_pixels: int) -> dict[str, float]:
    """Grey levels and cosines between the paths and the stock processor; raises AssertionError past the promises."""
    process, model = processor(max_pixels), tiny_qwen()
    mean = torch.tensor(process.image_mean)[:, None]
    std = torch.tensor(process.image_std)[:, None]
    height, width = patches.fit(WIDTH, HEIGHT, GEOMETRY.factor, 56 * 56, max_pixels)
    grid = torch.tensor([[1, height // GEOMETRY.patch, width // GEOMETRY.patch]])
    worst, means, cosines = 0.0, [], []
    for data in jpegs:
        reference = stock(process, data)
        grey = (reference.unflatten(1, (3, -1)) * std + mean) * 255
        exact, draft = (ours(data, max_pixels, d).unflatten(1, (3, -1)).float() for d in (False, True))
        worst = max(worst, (exact - grey).abs().max().item())
        means.append((draft - grey).abs().mean().item())
        drafted = ((draft / 255 - mean) / std).flatten(1)
        a, b = vector(model, reference, grid), vector(model, drafted, grid)
        cosines.append(cosine_similarity(a, b, dim=0).item())
    result = {
        "max_grey_difference": round(worst, 4),
        "draft_mean_grey_difference": round(max(means), 4),
        "draft_cosine": round(min(cosines), 6),
    }
    assert worst <= 1.0 and max(means) < 1.0 and min(cosines) > 0.999, result
    return result


def compare(found: Pairs) -> dict[str, Any]:
    """Ratios with their intervals, and the medians they come from."""
    result: dict[str, Any] = {}
    for name, ours_key, stock_key in (
        ("rate_ratio", "draft", "pillow"),
        ("rate_ratio_exact", "exact", "pillow"),
        ("vs_torchvision_fed", "draft", "torchvision"),
        ("vs_torchvision_fed_exact", "exact", "torchvision"),
    ):
        ratio, low, high = ratio_interval(found.a(ours_key), found.b(stock_key))
        result[name] = round(ratio, 3)
        result[f"{name}_interval"] = [round(low, 3), round(high, 3)]
    rates = {k: round(median(found.a(k)), 1) for k in ("draft", "exact")}
    rates |= {k: round(median(found.b(k)), 1) for k in ("pillow", "torchvision")}
    return {**result, "images_per_core_s": rates, "pairs": len(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--record", action="store_true", help="write docs/results/images.json")
    parser.add_argument("--side", choices=("ours", "stock"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=336, help="largest number of tokens a picture becomes")
    given = parser.parse_args()
    max_pixels = given.tokens * GEOMETRY.factor**2
    if given.side:
        print(json.dumps(side(given.side, given.folder, max_pixels)))
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        jpegs = [picture(seed, grain=2.4 + 0.35 * seed) for seed in range(8)]
        for i, data in enumerate(jpegs):
            (Path(folder) / f"{i}.jpg").write_bytes(data)
        sizes = [len(data) for data in jpegs]
        agreed = agreement(jpegs, max_pixels)
        print(f"agree: {agreed}; pictures of {min(sizes) // 1000} to {max(sizes) // 1000} kB", flush=True)

        def command(name: str) -> list[str]:
            return [sys.executable, __file__, "--side", name, "--folder", folder, "--tokens", str(given.tokens)]

        budget = 55 - (time.perf_counter() - started) if given.quick else float("inf")
        found = pairs(command("ours"), command("stock"), n=15, budget_s=budget)
    record("images", {**compare(found), **agreed, "tokens": given.tokens, "jpeg_bytes": sizes})


if __name__ == "__main__":
    main()
