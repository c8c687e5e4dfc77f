"""Patches: layout, order, sizes and grey levels equal those of the stock Qwen-VL picture and clip processors."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from omni2vec.data.parts import image as images
from omni2vec.data.parts import video as videos
from omni2vec.data.types import Blob, DataError, Video
from omni2vec.model.backbones import patches
from torch import Tensor
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.models.qwen2_vl import image_processing_qwen2_vl as qwen2
from transformers.models.qwen3_vl import video_processing_qwen3_vl as qwen3

QWEN2 = patches.Geometry(patch=14, merge=2, temporal=2)
QWEN3 = patches.Geometry(patch=16, merge=2, temporal=2)
LIMITS = [(56 * 56, 1280 * 28 * 28), (4 * 28 * 28, 64 * 28 * 28), (100_000, 100_000), (1, 10_000)]


def scene(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """Coarse noise with a hard edge, so that a wrong resize or order shows."""
    rng = np.random.default_rng(seed)
    small = PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    picture = small.resize((width, height), PIL.Image.Resampling.BICUBIC)
    picture.paste((255, 0, 90), (width // 3, height // 4, width // 2, height // 2))
    return picture


def encode(picture: PIL.Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def grey(process: Any, normalised: Tensor) -> Tensor:
    """The processor's patches before it normalised them, (n, d) in grey levels."""
    mean, std = (torch.tensor(x)[:, None] for x in (process.image_mean, process.image_std))
    return ((normalised.unflatten(1, (3, -1)) * std + mean) * 255).flatten(1)


@pytest.mark.parametrize("factor", [28, 32])
@pytest.mark.parametrize("limits", LIMITS)
def test_fit_equals_the_stock_rule(factor: int, limits: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(5), np.log(5000), (3000, 2))).astype(int).tolist()
    for width, height in [*sizes, (1, 200), (199, 1), (42, 42), (14, 70)]:
        if max(width, height) <= 200 * min(width, height):
            assert patches.fit(width, height, factor, *limits) == qwen2.smart_resize(height, width, factor, *limits)


@pytest.mark.parametrize("size", [(201, 1), (3, 999)])
def test_a_picture_that_is_nearly_a_line_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=rf"{size[0]}x{size[1]}.*200"):
        patches.fit(*size, 28, 100, 10_000)


@pytest.mark.parametrize("geometry", [QWEN2, QWEN3])
@pytest.mark.parametrize("size", [(320, 240), (61, 430), (40, 40), (700, 500)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exact_patches_equal_the_fast_processors_within_one_grey_level(
    geometry: patches.Geometry, size: tuple[int, int], kind: str
) -> None:
    most = 120_000
    process = Qwen2VLImageProcessor(patch_size=geometry.patch, size={"shortest_edge": 4096, "longest_edge": most})
    data = encode(scene(*size), kind)
    stock = process(images=[PIL.Image.open(BytesIO(data))], return_tensors="pt")
    height, width = patches.fit(*size, geometry.factor, 4096, most)
    found = patches.of_image(images.probe(Blob(data), "here"), height, width, geometry, False, "here")
    assert stock["image_grid_thw"].tolist() == [[1, height // geometry.patch, width // geometry.patch]]
    assert found.dtype == torch.uint8 and found.shape == stock["pixel_values"].shape
    assert (found.float() - grey(process, stock["pixel_values"])).abs().max() <= 1.0


@pytest.mark.parametrize(("scale", "level"), [(1.0, 0.0), (0.9, 0.0), (0.45, 1.0), (0.2, 1.0)])
def test_draft_patches_are_within_one_grey_level_in_the_mean(scale: float, level: float) -> None:
    data = encode(scene(1120, 840), quality=85)
    image = images.probe(Blob(data), "here")
    height, width = patches.fit(round(1120 * scale), round(840 * scale), 28, 1, 10**9)
    exact, draft = (patches.of_image(image, height, width, QWEN2, d, "here").float() for d in (False, True))
    assert (exact - draft).abs().mean() <= level
    assert (level == 0.0) == torch.equal(exact, draft)  # a draft is one only from half the size down


def test_a_turned_picture_is_drafted_upright() -> None:
    exif = PIL.Image.Exif()
    exif[images.ORIENTATION] = 6
    image = images.probe(Blob(encode(scene(1120, 560), quality=90, exif=exif)), "here")
    assert (image.width, image.height) == (560, 1120)
    exact, draft = (patches.of_image(image, 448, 224, QWEN2, d, "here").float() for d in (False, True))
    assert 0 < (exact - draft).abs().mean() < 1.0


def clip(frames: int, width: int, height: int) -> tuple[Video, Tensor]:
    shown = [scene(width, height, seed) for seed in range(frames)]
    data = encode(shown[0], "WEBP", save_all=True, append_images=shown[1:], duration=100, lossless=True)
    raw = torch.stack([torch.from_numpy(np.array(s)).permute(2, 0, 1) for s in shown])
    return videos.probe(Blob(data), "here"), raw


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_clip_patches_equal_qwen2_vls_video_processor_with_an_odd_last_frame_repeated(frames: int) -> None:
    process = Qwen2VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 20_000}, cap_pixels_per_frame=False)
    video, raw = clip(frames, 200, 130)
    stock = process(videos=[raw], return_tensors="pt", do_sample_frames=False)
    height, width = patches.fit_qwen2_video(frames, 200, 130, 28, 4096, 20_000)
    found = patches.of_video(video, list(range(frames)), height, width, QWEN2, "here")
    assert stock["video_grid_thw"].tolist() == [[(frames + 1) // 2, height // 14, width // 14]]
    assert found.dtype == torch.uint8 and found.shape == stock["pixel_values_videos"].shape
    assert (found.float() - grey(process, stock["pixel_values_videos"])).abs().max() <= 1.0


@pytest.mark.parametrize("frames", [2, 5, 6])
def test_clip_patches_equal_qwen3_vls_video_processor(frames: int) -> None:
    process = Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 90_000}, cap_pixels_per_frame=False)
    video, raw = clip(frames, 200, 130)
    stock = process(videos=[raw], return_tensors="pt", do_sample_frames=False)
    height, width = patches.fit_qwen3_video(frames, 200, 130, 32, 4096, 90_000)
    found = patches.of_video(video, list(range(frames)), height, width, QWEN3, "here")
    assert stock["video_grid_thw"].tolist() == [[(frames + 1) // 2, height // 16, width // 16]]
    assert (found.float() - grey(process, stock["pixel_values_videos"])).abs().max() <= 1.0


def test_chosen_frames_are_the_ones_whose_patches_come() -> None:
    video, _ = clip(5, 60, 60)
    whole = patches.of_video(video, [0, 1, 2, 3, 4, 4], 56, 56, QWEN2, "here").view(3, 16, 3, 2, 196)
    found = patches.of_video(video, [1, 4], 56, 56, QWEN2, "here").view(16, 3, 2, 196)
    assert torch.equal(found[:, :, 0], whole[0, :, :, 1]) and torch.equal(found[:, :, 1], whole[2, :, :, 0])


def volumes() -> list[tuple[int, int, int]]:
    rng = np.random.default_rng(1)
    sizes = np.exp(rng.uniform(np.log(10), np.log(2000), (1500, 2))).astype(int).tolist()
    return [(int(rng.integers(2, 300)), w, h) for w, h in sizes if max(w, h) <= 100 * min(w, h)]


@pytest.mark.parametrize("limits", [(128 * 32 * 32, 32 * 32 * 768), (4096, 25_165_824), (10_000, 400_000)])
def test_qwen3_vls_clip_sizes_equal_the_stock_rule(limits: tuple[int, int]) -> None:
    for frames, width, height in volumes():
        expected = qwen3.smart_resize(frames, height, width, 2, 32, *limits)
        assert patches.fit_qwen3_video(frames, width, height, 32, *limits) == expected


@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_clip_sizes_equal_what_the_stock_processors_resize_to(family: str, cap: bool, monkeypatch: Any) -> None:
    made = {"qwen2": Qwen2VLVideoProcessor, "qwen3": Qwen3VLVideoProcessor}[family]
    process, factor = made(), {"qwen2": 28, "qwen3": 32}[family]
    asked: list[tuple[int, int]] = []
    above = made.__mro__[1]
    monkeypatch.setattr(above, "resize", lambda self, image, size, resample: asked.append((size.height, size.width)))
    fit = {"qwen2": patches.fit_qwen2_video, "qwen3": patches.fit_qwen3_video}[family]
    limits = (process.size["shortest_edge"], process.size["longest_edge"])
    for frames, width, height in volumes()[:300]:
        shape = torch.empty(1, frames, 3, height, width, dtype=torch.uint8, device="meta")
        process.resize(shape, process.size, None, factor=factor, temporal_factor=2, cap_pixels_per_frame=cap or None)
        tokens = process.max_video_tokens if cap else 0
        assert fit(frames, width, height, factor, *limits, max_tokens=tokens) == asked[-1], (frames, width, height)


def test_a_single_frame_is_sized_as_the_pair_it_becomes() -> None:
    assert patches.fit_qwen3_video(1, 320, 240, 32, 100, 10**6) == patches.fit_qwen3_video(2, 320, 240, 32, 100, 10**6)
