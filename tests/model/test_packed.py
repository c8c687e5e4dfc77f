"""One packed row is the same function as one item at a time, and as the stock model on a padded batch."""

from dataclasses import replace

import pytest
import torch
from omni2vec.data.types import Image, Item, Prompted, Text, Video
from omni2vec.model.attention import Segments, packed_attention
from omni2vec.model.embedder import Embedder

from .small import KINDS, mixed, tiny


def having(embedder, **changes):
    return Embedder(embedder.backbone, embedder.template, replace(embedder.settings, **changes)).eval()


def collated(embedder, prompts):
    return embedder.format.collate(prompts, [embedder.limits] * len(prompts))


@pytest.fixture(scope="module", params=KINDS)
def embedder(request):
    torch.set_num_threads(1)
    return tiny(request.param)


@pytest.mark.parametrize("pooling", ["last", "mean", "weighted"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_packed_equals_one_at_a_time(embedder, attention, pooling):
    model = having(embedder, attention=attention, pooling=pooling)
    items = mixed()
    together = model.encode(items, instruction="find the caption")
    alone = torch.stack([model.encode(item, instruction="find the caption") for item in items])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert (together @ together.T).std() > 0.01  # vectors that were all alike would be equal in any order


def test_order_and_packing_do_not_matter(embedder):
    items = mixed()
    whole = embedder.encode(items)
    torch.testing.assert_close(embedder.encode(items[::-1]), whole.flip(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(embedder.encode(items, tokens=150), whole, rtol=0, atol=1e-5)


def stock_inputs(embedder, items, instruction):
    """The stock processor's padded batch of items of text and pictures."""
    from omni2vec.data.parts.image import decode
    from torchvision.transforms.functional import to_pil_image

    messages = []
    for item in items:
        parts = [
            {"type": "text", "text": p.text}
            if isinstance(p, Text)
            else {"type": "image", "image": to_pil_image(decode(p, ""))}
            for p in item.parts
        ]
        messages.append([{"role": "system", "content": instruction}, {"role": "user", "content": parts}])
    return embedder.backbone.processor.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def test_packed_equals_the_stock_model_on_its_own_padded_batch(embedder, tmp_path):
    from transformers import AutoModelForImageTextToText

    items = mixed(8, video=False)
    embedder.save(tmp_path / "m")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "m").eval()
    batch = stock_inputs(embedder, items, "find the caption")
    with torch.no_grad():
        hidden = stock.model(**batch).last_hidden_state[:, -1]  # the tokenizer pads on the left
    expected = torch.nn.functional.normalize(hidden, dim=-1)
    torch.testing.assert_close(embedder.encode(items, instruction="find the caption"), expected, rtol=0, atol=1e-5)


def test_packed_gradients_equal_the_padded_batch_s(embedder, tmp_path):
    from transformers import AutoModelForImageTextToText

    items = mixed(8, video=False)
    embedder.save(tmp_path / "m")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "m").train()
    weight = torch.randn(8, embedder.width, generator=torch.Generator().manual_seed(0))
    hidden = stock.model(**stock_inputs(embedder, items, "find it")).last_hidden_state[:, -1]
    (torch.nn.functional.normalize(hidden, dim=-1) * weight).sum().backward()
    embedder.zero_grad()
    prompts = [Prompted(i, "query", "find it") for i in items]
    (embedder.train()(collated(embedder, prompts)).vectors * weight).sum().backward()
    ours = dict(embedder.base.model.named_parameters())
    scale = max(p.grad.abs().max() for p in stock.parameters() if p.grad is not None)
    checked = 0
    for name, p in stock.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[name].grad, p.grad, rtol=0, atol=float(1e-5 * scale))
            checked += 1
    assert checked > 30
    embedder.zero_grad()


def test_positions_equal_the_stock_rope_index(embedder):
    for item in mixed(12, seed=3):
        inputs = collated(embedder, [Prompted(item, "query", "find")])
        kinds = torch.zeros_like(inputs.ids)
        for number, kind in ((1, "image"), (2, "video")):
            if f"{kind}_rows" in inputs.media:
                kinds[inputs.media[f"{kind}_rows"]] = number
        extra = {}
        if embedder.backbone.kind == "qwen2_5_vl" and "video_grid" in inputs.media:
            media = [
                m
                for s in embedder.format.segments([Prompted(item, "query", "find")], [embedder.limits])
                for m in s.media
            ]
            per_second = embedder.format.media.tokens_per_second
            extra["second_per_grid_ts"] = torch.tensor(
                [embedder.format.media.interval(m) / per_second for m in media if m.kind == "video"]
            )
        expected, _ = embedder.backbone.base.get_rope_index(
            inputs.ids[None],
            mm_token_type_ids=kinds[None],
            image_grid_thw=inputs.media.get("image_grid"),
            video_grid_thw=inputs.media.get("video_grid"),
            **extra,
        )
        assert torch.equal(inputs.positions, expected[:, 0])


def test_a_clip_s_tokens_equal_the_stock_processor_s(embedder):
    from omni2vec.data.parts.image import resize
    from omni2vec.data.parts.video import decode
    from transformers.video_utils import VideoMetadata

    item = mixed(12)[5]
    (video,) = item.parts
    assert isinstance(video, Video)
    prompt = Prompted(item, "query", "find")
    (segment,) = embedder.format.segments([prompt], [embedder.limits])
    (medium,) = segment.media
    frames = resize(decode(video, list(medium.indices), ""), medium.height, medium.width).permute(0, 2, 3, 1).numpy()
    fps = video.frames / video.seconds
    meta = VideoMetadata(
        total_num_frames=video.frames,
        fps=fps,
        frames_indices=list(medium.indices),
        height=60,
        width=60,
        duration=video.seconds,
    )
    text = embedder.template.render(prompt).text
    batch = embedder.backbone.processor(
        text=[text],
        videos=[frames],
        video_metadata=[meta],
        return_tensors="pt",
        videos_kwargs={"do_sample_frames": False, "do_resize": False},
    )
    assert batch["video_grid_thw"][0].tolist() == list(medium.grid)
    assert batch["input_ids"][0].tolist() == segment.ids


@pytest.mark.parametrize(("attention", "pooling"), [("causal", "last"), ("causal", "mean"), ("prefix", "mean")])
def test_changing_the_answer_leaves_the_vector_equal_to_the_bit(embedder, attention, pooling):
    model = having(embedder, attention=attention, pooling=pooling)
    answers = ["", "a red circle", "blue", "", "find the caption above the square", "red"]
    items = mixed(6)
    inputs = collated(model, [Prompted(i, answer=a) for i, a in zip(items, answers, strict=True)])
    ids, start = inputs.ids.clone(), 0
    for length, prefix in zip(inputs.lengths, inputs.prefix, strict=True):
        ids[start + prefix : start + length] = 7  # every answer token another
        start += length
    assert (ids != inputs.ids).sum() > 10
    with torch.no_grad():
        told, otherwise = (model(x).vectors for x in (inputs, replace(inputs, ids=ids)))
        bare = model(collated(model, [Prompted(i) for i in items])).vectors
    assert torch.equal(told, otherwise)
    torch.testing.assert_close(
        told, bare, rtol=0, atol=1e-6
    )  # another length: the same numbers summed in another order


def test_bidirectional_attention_refuses_an_answer(embedder):
    model = having(embedder, attention="bidirectional", pooling="mean")
    with pytest.raises(ValueError, match="prefix"):
        model(collated(model, [Prompted(Item.text("a"), answer="b")]))


def test_checkpointed_gradients_equal_plain_ones(embedder):
    model = having(embedder, attention="prefix", pooling="mean").train()
    inputs = collated(model, [Prompted(i, answer="red circle") for i in mixed(6)])

    def gradients():
        model.zero_grad()
        model(inputs).vectors[:, 0].sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = gradients()
    model.base.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = gradients()
    model.base.model.gradient_checkpointing_disable()
    model.zero_grad()
    assert torch.equal(plain, again)
    assert plain.abs().max() > 0


@pytest.mark.parametrize("attention", ["causal", "bidirectional", "prefix"])
def test_runs_of_segments_equal_a_dense_mask(attention):
    g = torch.Generator().manual_seed(0)
    lengths = (5, 5, 5, 3, 3, 1, 7)
    prefix = (4, 4, 5, 3, 2, 1, 3) if attention == "prefix" else lengths
    total = sum(lengths)
    q = torch.randn(1, 4, total, 8, generator=g, dtype=torch.float64)
    k, v = (torch.randn(1, 2, total, 8, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(total, total, dtype=torch.bool)
    start = 0
    for n, p in zip(lengths, prefix, strict=True):
        block = torch.ones(n, n, dtype=torch.bool)
        if attention != "bidirectional":
            block = block.tril()
        if attention == "prefix":
            block[:, :p] = True
        mask[start : start + n, start : start + n] = block
        start += n
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    got, _ = packed_attention(torch.nn.Identity(), q, k, v, None, segments=Segments(lengths, prefix, attention))
    torch.testing.assert_close(got, expected.transpose(1, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("attention", ["causal", "bidirectional", "prefix"])
def test_the_kernel_s_calls_equal_the_runs(attention, monkeypatch):
    """The calls made of the variable-length kernel, with a ten-line kernel in its place: it has none for a CPU."""
    from omni2vec.model import attention as module

    def kernel(q, k, v, bounds, longest, causal, scale, window):
        out = []
        for (a, b), (c, d) in zip(*[zip(x.tolist(), x[1:].tolist(), strict=False) for x in bounds], strict=True):
            n, m = b - a, d - c
            assert n <= longest[0] and m <= longest[1]
            mask = torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal else torch.ones(n, m, dtype=torch.bool)
            heads = [t.transpose(0, 1) for t in (q[a:b], k[c:d], v[c:d])]
            o = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, enable_gqa=True)
            out.append(o.transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr(module, "_varlen", kernel)
    lengths, g = (5, 5, 3, 1, 7), torch.Generator().manual_seed(0)
    prefix = (4, 5, 2, 1, 3) if attention == "prefix" else lengths
    q = torch.randn(1, 4, 21, 8, generator=g, dtype=torch.float64)
    k, v = (torch.randn(1, 2, 21, 8, generator=g, dtype=torch.float64) for _ in range(2))
    segments = Segments(lengths, prefix, attention)
    got = module._cuda_attention(q, k, v, segments, None, None)
    torch.testing.assert_close(got, module._runs_attention(q, k, v, segments, None, 0.0, None), rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["causal", "bidirectional", "prefix"])
def test_the_kernel_equals_the_runs_on_a_gpu(attention):
    from omni2vec.model import attention as module

    lengths = (50, 50, 30, 1, 70)
    prefix = (40, 50, 20, 1, 30) if attention == "prefix" else lengths
    q = torch.randn(1, 4, 201, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(1, 2, 201, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    segments = Segments(lengths, prefix, attention)
    weight = torch.randn(1, 201, 4, 64, device="cuda")
    sides = (
        module._cuda_attention(q, k, v, segments, None, None),
        module._runs_attention(q, k, v, segments, None, 0.0, None),
    )
    found = [[out, *torch.autograd.grad((out * weight).sum(), (q, k, v))] for out in sides]
    for a, b in zip(*found, strict=True):
        assert float((a - b).float().norm() / b.float().norm()) < 2e-2


def test_a_picture_is_counted_as_it_is_collated(embedder):
    prompts = [Prompted(i, "query", "find the caption", answer="red") for i in mixed(12)]
    costs = embedder.format.count(prompts, [embedder.limits] * len(prompts))
    inputs = collated(embedder, prompts)
    assert tuple(c.tokens for c in costs) == inputs.lengths
    assert sum(c.labels for c in costs) == int((inputs.labels >= 0).sum()) > 0
    assert [c.towers for c in costs[:2]] == [(), ("image",)]
    assert any(isinstance(p, Image) for i in mixed(12) for p in i.parts)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_dummy_segment_runs_the_tower_and_its_vector_is_last(embedder, kind):
    prompts = [Prompted(Item.text("a red circle"))]
    inputs = embedder.format.collate(prompts, [embedder.limits], dummies=(kind,))
    assert inputs.dummies == 1
    assert len(inputs.lengths) == 2
    with torch.no_grad():
        out = embedder.eval()(inputs)
        alone = embedder(collated(embedder, prompts))
    assert out.towers.features
    torch.testing.assert_close(out.vectors[:1], alone.vectors, rtol=0, atol=1e-6)
