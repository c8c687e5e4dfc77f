"""What of a source elsewhere decides a step: its rows, and neither where they lie nor what signs their address."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Concat, Shards, Take
from omni2vec.data.types import Example, Item, Source
from omni2vec.launch.digest import canonical, differences, step_digest


@dataclass(frozen=True)
class Learn:
    name: str
    sources: tuple[Source, ...]


def nowhere(_: object) -> Path:
    raise AssertionError("no step is needed")


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Two sets of other rows, one of them in two places."""
    for name in ("one", "two"):
        rows = [Example(f"k{i}", "far", "retrieval", Item.text(f"{name} {i}"), (Item.text("a"),)) for i in range(4)]
        write_shards(rows, tmp_path / name)
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    return tmp_path


def form(*sources: Source) -> dict[str, object]:
    return canonical(Learn("train", sources), nowhere, {})


def far(sets: Path, folder: str, signature: str = "a") -> Shards:
    """Signed: the command takes no notice of it."""
    command = f"pipe:cat {sets}/{folder}/{{}} # https://me:{signature}@h/?X-Amz-Signature={signature}"
    return Shards(command, "shard-000000.tar", name="set", cache=str(sets / "cache"))


@pytest.mark.parametrize("inside", [lambda s: s, lambda s: Take(s, 2), lambda s: Concat((Take(s, 2), s), "both")])
def test_another_signature_and_another_place_of_the_same_rows_give_the_same_digest(inside, sets: Path) -> None:
    first = form(inside(far(sets, "one", "secret")))
    assert "secret" not in json.dumps(first)
    for same in (far(sets, "one", "b"), far(sets, "moved")):
        assert step_digest(form(inside(same))) == step_digest(first)


def test_other_rows_give_another_digest_and_the_difference_is_told_as_theirs(sets: Path) -> None:
    first, other = form(far(sets, "one")), form(far(sets, "two"))
    assert step_digest(first) != step_digest(other)
    (line,) = differences(first, other, "train")
    assert line.startswith("train.outside.set: ")


def test_sources_of_one_name_both_count(sets: Path) -> None:
    one, two = far(sets, "one"), far(sets, "two")
    assert len({step_digest(form(*s)) for s in ((one, two), (one, one), (two, two))}) == 3


def test_the_path_of_shards_here_counts_as_before(sets: Path) -> None:
    found = form(Shards(str(sets / "one"), name="set"))
    assert found["fields"]["sources"][0]["at"] == str(sets / "one")  # type: ignore[index]
    assert step_digest(found) != step_digest(form(Shards(str(sets / "moved"), name="set")))
