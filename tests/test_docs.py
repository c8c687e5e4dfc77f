"""The code of the pages runs: every python block, in order, in one namespace a page."""

import re
from pathlib import Path

import pytest
from omni2vec.data.shards import write_shards
from omni2vec.data.types import Example, Item
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = (
    *("streams", "shards", "your_data", "instructions", "clusters", "recipes"),
    *("objectives", "graded", "distillation", "merging", "mining", "search"),
)
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n+)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page):
    """(number, line, code) of each block that runs; of the README, those that define a recipe."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for number, found in enumerate(BLOCK.finditer(text), 1):
        if not found[1] and (page != "README.md" or "def recipe(" in found[2]):
            yield number, text.count("\n", 0, found.start(2)), found[2]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The few files that the pages read, as they name them: a shard, and a table with its photographs."""
    write_shards([Example("a", "mine", "retrieval", Item.text("a hat"), (Item.text("headwear"),))], tmp_path)
    photos = tmp_path / "mugs/photos"
    photos.mkdir(parents=True)
    lines = ["question,photo,kind"]
    for number, (asked, kind) in enumerate((("a blue mug", "mug"), ("something to pour tea from", "teapot")), 1):
        Image.new("RGB", (40, 30), (0, 0, 99 * number)).save(photos / f"000{number}.jpg")
        lines.append(f"{asked},photos/000{number}.jpg,{kind}")
    (tmp_path / "mugs/train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in PAGES)])
def test_every_python_block_of_the_page_runs_after_those_before_it(page, files):
    known = {"__name__": "__main__"}
    run = 0
    for number, line, code in blocks(page):
        try:
            exec(compile("\n" * line + code, str(ROOT / page), "exec"), known)
            if "def recipe(" in code:
                known["recipe"](model="org/some-vlm")
        except Exception as error:
            pytest.fail(f"{page}, python block {number} (line {line + 1}): {type(error).__name__}: {error}")
        run += 1
    assert run, f"{page} has no python block that runs"
