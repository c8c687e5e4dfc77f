"""The synthetic world: train and test share no composition, rows depend on nothing but their number, all is written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from omni2vec.data.shards import Shard, verify
from omni2vec.data.types import DataError, Events, Example, Item, Text
from omni2vec.data.world import TASKS, World, examples
from omni2vec.data.world.compositions import AXES, Axis, Split, pairs, partners
from omni2vec.data.world.vocabulary import COLOURS, COUNTS, GOODS, INSTRUMENTS, PAPERS, PLURALS, SHAPES, TOPICS

ROWS = 60  # of each of 17 tasks and both splits: 2,040 rows
# Two words that stand for a composition wherever a text says them, with at most these words between them.
SPOKEN: dict[Axis, tuple[dict[str, str], dict[str, str], str]] = {
    "things": ({c: c for c in COLOURS}, {w: s for s in SHAPES for w in (s, PLURALS[s])}, r" "),
    "goods": ({c: c for c in COLOURS}, {g: g for g in GOODS}, r" "),
    "titles": ({t.lower(): t for t in TOPICS}, {p.lower(): p for p in PAPERS}, r" "),
    "sounds": ({c: c for c in COUNTS}, {i: i for i in INSTRUMENTS}, r" (?:fast|slow) (?:low|middle|high) "),
}


def items(example: Example) -> tuple[Item, ...]:
    return (example.query, *example.positives, *example.negatives)


def texts(example: Example) -> list[str]:
    spoken = [p.text for item in items(example) for p in item.parts if isinstance(p, Text)]
    done = [e.text for item in items(example) for p in item.parts if isinstance(p, Events) for e in p.events]
    return [*spoken, *done, example.answer, example.label]


def compositions(said: list[str]) -> set[tuple[Axis, str, str]]:
    """Every pair of words that some text puts together."""
    found = set()
    for axis, (first, second, between) in SPOKEN.items():
        pattern = re.compile(rf"\b({'|'.join(first)}){between}({'|'.join(second)})\b")
        found |= {(axis, first[a], second[b]) for text in said for a, b in pattern.findall(text)}
    return found


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, Split], list[Example]]:
    return {(task, split): list(examples(task, split, ROWS)) for task in TASKS for split in ("train", "test")}


def test_no_composition_that_a_training_text_names_is_named_at_test(
    rows: dict[tuple[str, Split], list[Example]],
) -> None:
    named = {
        split: compositions([t for (_, s), group in rows.items() if s == split for e in group for t in texts(e)])
        for split in ("train", "test")
    }
    assert not named["train"] & named["test"]
    for axis, (first, second) in AXES.items():
        for split in ("train", "test"):
            seen = {(a, b) for x, a, b in named[split] if x == axis}
            assert seen <= set(pairs(axis, split))  # type: ignore[arg-type]
            assert len(seen) >= 0.15 * len(pairs(axis, split))  # type: ignore[arg-type]  # the look saw much
            assert axis == "titles" or seen == set(pairs(axis, split))  # type: ignore[arg-type]
        assert len(pairs(axis, "test")) * 4 == len(first) * len(second)


def test_every_word_is_in_training_with_most_of_its_partners() -> None:
    for axis, words in AXES.items():
        for word in {*words[0], *words[1]}:
            assert len(partners(axis, "train", word)) == 3 * len(partners(axis, "test", word)) > 0
        for side in words:  # no two miss the same ones
            assert len({partners(axis, "test", word) for word in side}) == len(side)


def test_no_picture_clip_sound_or_describing_text_of_the_test_is_in_training(
    rows: dict[tuple[str, Split], list[Example]],
) -> None:
    bytes_of: dict[str, set[object]] = {"train": set(), "test": set()}
    for (_, split), group in rows.items():
        for part in (p for e in group for item in items(e) for p in item.parts):
            if not isinstance(part, Text):
                bytes_of[split].add(part if isinstance(part, Events) else part.blob.data)
            elif compositions([part.text]):  # an answer of one word is in both, as it must be
                bytes_of[split].add(part.text)
    assert len(bytes_of["train"]) > 1000 and len(bytes_of["test"]) > 1000
    assert not bytes_of["train"] & bytes_of["test"]


def test_ids_of_described_media_do_not_cross_from_training_to_test(
    rows: dict[tuple[str, Split], list[Example]],
) -> None:
    ids = {
        split: {
            item.id
            for (_, s), group in rows.items()
            if s == split
            for e in group
            for item in items(e)
            if any(not isinstance(p, Text) for p in item.parts)
        }
        for split in ("train", "test")
    }
    assert ids["train"] and not ids["train"] & ids["test"]


@pytest.mark.parametrize("task", TASKS)
def test_a_row_depends_on_its_number_alone(task: str, rows: dict[tuple[str, Split], list[Example]]) -> None:
    assert list(examples(task, "test", 2, first=7)) == rows[task, "test"][7:9]
    assert rows[task, "test"][7] != rows[task, "test"][8]
    assert next(examples(task, "test", 1, seed=1)) != rows[task, "test"][0]


@pytest.mark.parametrize("task", TASKS)
def test_keys_are_stable_and_every_row_has_its_instructions(
    task: str, rows: dict[tuple[str, Split], list[Example]]
) -> None:
    for split in ("train", "test"):
        group = rows[task, split]
        assert [e.key for e in group] == [f"world/{task}/{split}/{i:06d}" for i in range(ROWS)]
        assert {e.source for e in group} == {f"world/{task}"}
        assert all(e.instruction and e.target_instruction for e in group)
        assert len({e.instruction for e in group}) == 1


@pytest.mark.parametrize("task", [t for t in TASKS if t != "yes_no"])
def test_a_test_row_with_a_pool_of_its_own_has_eight_candidates_or_more(
    task: str, rows: dict[tuple[str, Split], list[Example]]
) -> None:
    for e in rows[task, "test"]:
        if e.task in ("vqa", "grounding"):
            assert len({item.id for item in (*e.positives, *e.negatives)}) == 1 + len(e.negatives) >= 8


def test_no_wrong_answer_is_right(rows: dict[tuple[str, Split], list[Example]]) -> None:
    for group in rows.values():
        for e in group:
            right = {*e.known, *(p.id for p in e.positives)}
            assert not right & {n.id for n in e.negatives}
            assert e.task == "sts" or right == set(e.known)


def test_yes_and_no_are_equally_frequent() -> None:
    yes = sum(e.answer == "yes" for e in examples("yes_no", "test", 600))
    assert abs(yes - 300) < 3 * 12.3  # standard deviation of 600 fair coins


def test_a_training_row_carries_no_more_wrong_answers_than_asked_for() -> None:
    for task in TASKS:
        counts = [len(e.negatives) for e in examples(task, "train", 20, hard=2)]
        assert max(counts) <= 2
        assert [len(e.negatives) for e in examples(task, "train", 20, hard=0)] == [0] * 20


def test_shards_are_equal_to_the_byte_on_one_core_and_on_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(train=70, test=5, tasks=("caption_to_image", "sts", "behaviour", "caption_to_sound"))
    world.make(tmp_path / "one", lambda step: tmp_path)
    monkeypatch.setattr("omni2vec.data.world.step.ALONE", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    world.make(tmp_path / "two", lambda step: tmp_path)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 2 * 4 * 3  # a tar, its index and a catalogue, of each task and split
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_every_task_is_written_and_read_back_whole(tmp_path: Path) -> None:
    World(train=3, test=2).make(tmp_path, lambda step: tmp_path)
    paths = sorted(tmp_path.rglob("*.tar"))
    assert [p.parent.relative_to(tmp_path).as_posix() for p in paths] == sorted(
        f"{split}/{task}" for split in ("train", "test") for task in TASKS
    )
    assert not list(verify(paths))
    for path in paths:
        split, task = path.parent.parent.name, path.parent.name
        shard = Shard(path)
        for i, wanted in enumerate(examples(task, split, len(shard))):  # type: ignore[arg-type]
            got = shard.example(i)
            assert [x.id for x in items(got)] == [x.id for x in items(wanted)]
            assert (got.known, got.answer, got.label, got.scores) == (
                wanted.known,
                wanted.answer,
                wanted.label,
                wanted.scores,
            )
            for a, b in zip(items(got), items(wanted), strict=True):
                for p, q in zip(a.parts, b.parts, strict=True):
                    if not isinstance(q, Text | Events):
                        assert p.blob.read() == q.blob.data  # type: ignore[union-attr]


def test_the_size_of_a_scene_can_be_chosen() -> None:
    small, large = (next(examples("image_to_caption", "train", 1, pixels=n)) for n in (48, 192))
    assert [(p.width, p.height) for e in (small, large) for p in e.query.parts] == [(48, 48), (192, 192)]  # type: ignore[union-attr]
    assert small.answer == large.answer


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tasks": ("captions",)}, "caption_to_image"),
        ({"tasks": ()}, "choose from"),
        ({"train": -1}, "train=-1"),
        ({"train": 0, "test": 0}, "train=0"),
        ({"pixels": 12}, "pixels=12"),
        ({"hard": -1}, "hard=-1"),
    ],
)
def test_a_wrong_field_is_refused_with_its_remedy(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        World(**wrong)  # type: ignore[arg-type]


def test_a_task_or_split_that_the_world_lacks_is_refused() -> None:
    with pytest.raises(DataError, match="no task 'captions'"):
        next(examples("captions", "train", 1))
    with pytest.raises(DataError, match="no split 'valid'"):
        next(examples("vqa", "valid", 1))  # type: ignore[arg-type]


def test_the_world_is_drawn_without_torch() -> None:
    code = (
        "import json, sys; from omni2vec.data.world import World, examples; list(examples('vqa', 'train', 1)); "
        "print(json.dumps('torch' in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) is False


def test_neighbouring_rows_of_captions_differ() -> None:
    queries = [e.query.id for e in examples("caption_to_image", "train", 300)]
    assert all(a != b for a, b in pairwise(queries)) and len(set(queries)) > 290
