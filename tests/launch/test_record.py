"""A recipe to JSON and back, its digests, and what a record is not allowed to do."""

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from omni2vec import __version__
from omni2vec.data.types import Limits, Step
from omni2vec.launch.digest import canonical, differences, step_digest
from omni2vec.launch.graph import Recipe
from omni2vec.launch.load import load
from omni2vec.launch.record import read, write
from omni2vec.launch.words import RecipeError


@dataclass(frozen=True)
class Box:
    name: str
    inside: object = None
    on: tuple[Step, ...] = ()
    by: dict[object, object] = field(default_factory=dict)
    workers: int = field(default=1, compare=False)

    def make(self, out, where):
        pass


def there_and_back(recipe):
    return read(json.loads(json.dumps(write(recipe), allow_nan=False)))


def digest_of(step, where=lambda s: Path(s.name)):
    return step_digest(canonical(step, where, {}))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        float("inf"),
        float("-inf"),
        "text",
        "",
        Path("some/where"),
        (),
        (1, (2.5, None)),
        {"a": 1, "b": {"c": (1,)}},
        {1: "x", (2, 3): "y"},
        {"type": "x"},
        {"step": "x"},
        {},
        Limits(max_tokens=77),
        {"deep": (Limits(draft=True), {"x": Limits()})},
    ],
    ids=repr,
)
def test_a_value_survives_the_record(value):
    back = there_and_back(Recipe("r", (Box("a", value),))).last[0].inside
    assert back == value and type(back) is type(value)


def test_a_recipe_survives_and_shared_steps_stay_one():
    shared = Box("shared")
    recipe = Recipe("r", (Box("x", on=(shared,)), Box("y", {"k": (shared,)}, on=(shared,))))
    back = there_and_back(recipe)
    assert back == recipe
    assert back.last[0].on[0] is back.last[1].on[0] is back.last[1].inside["k"][0]


def test_the_toy_recipe_survives(toy):
    recipe = load(toy, ["data=x.txt", "train.limit=inf"])
    assert there_and_back(recipe) == recipe


def test_the_record_says_which_version_wrote_it(toy):
    assert write(load(toy))["omni2vec"] == __version__


@pytest.mark.parametrize(
    "value", [[1], {1, 2}, b"x", print, object()], ids=["list", "set", "bytes", "function", "object"]
)
def test_what_a_record_cannot_hold_is_refused_by_name(value):
    with pytest.raises(RecipeError, match=r"step 'a', inside.* is a .*a record cannot hold"):
        write(Recipe("r", (Box("a", {"k": value}),)))


def test_a_class_inside_a_function_is_refused():
    @dataclass(frozen=True)
    class Local:
        x: int = 1

    with pytest.raises(RecipeError, match="move it to its file's top level"):
        write(Recipe("r", (Box("a", Local()),)))


def edited(change):
    record = json.loads(json.dumps(write(Recipe("r", (Box("a", Limits()),)))))
    change(record)
    return record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["steps"]["a"].update(insde=1), r"Box has no field 'insde'\. Did you mean 'inside'\?(.|\n)*on:"),
        (lambda r: r["steps"]["a"].pop("name"), r"Box needs the field 'name'(.|\n)*inside:"),
        (lambda r: r["steps"]["a"]["inside"].update(type="os.system"), "os.system is not a frozen dataclass"),
        (lambda r: r["steps"]["a"]["inside"].update(type="antigravity.Fly"), "not imported"),
        (lambda r: r["steps"]["a"]["inside"].update(type="omni2vec.__main__.Limits"), "not imported"),
        (lambda r: r["steps"]["a"]["inside"].update(type="omni2vec.data.nothing.X"), "no module omni2vec.data.nothing"),
        (lambda r: r["steps"]["a"]["inside"].update(type="omni2vec.data.types.digest"), "not a frozen dataclass"),
        (lambda r: r["steps"]["a"].update(inside={"step": "b"}), "no step 'b' before it"),
        (lambda r: r["last"].append("z"), "no step 'z'"),
        (lambda r: r["steps"]["a"].update(name="b"), "no step of that name"),
        (lambda r: r.pop("steps"), "not a record"),
    ],
)
def test_a_wrong_record_is_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        read(edited(change))


def test_reading_imports_nothing_that_a_record_names():
    with pytest.raises(RecipeError):
        read(edited(lambda r: r["steps"]["a"]["inside"].update(type="antigravity.Fly")))
    assert "antigravity" not in sys.modules


def test_a_field_younger_than_the_record_takes_its_default():
    assert read(edited(lambda r: r["steps"]["a"].pop("workers"))).last[0].workers == 1


def test_equal_steps_have_equal_digests_and_a_field_that_equality_ignores_does_not_count():
    assert digest_of(Box("a", 1.0)) == digest_of(Box("a", 1)) == digest_of(Box("a", 1, workers=8))
    assert digest_of(Box("a", 1)) != digest_of(Box("a", 2))


def test_a_digest_hangs_on_the_digests_of_needed_steps():
    step = Box("b", on=(Box("a"),))
    one, two = (step_digest(canonical(step, Path, {"a": d})) for d in ("1", "2"))
    assert one != two


def test_a_digest_hangs_on_the_content_of_an_outside_source(steps, tmp_path):
    file = tmp_path / "lines.txt"
    box = Box("a", steps.Lines(str(file)))
    file.write_text("one\n")
    first = digest_of(box)
    assert digest_of(box) == first
    file.write_text("two\n")
    assert digest_of(box) != first


@dataclass(frozen=True)
class FromFolder:
    name: str
    weights: str

    def make(self, out, where):
        pass

    def outside(self, where):
        return {"weights": self.weights}


def test_a_step_may_say_itself_what_it_reads_from_outside():
    assert canonical(FromFolder("a", "123"), Path, {})["outside"] == {"weights": "123"}


def test_digests_are_the_same_in_another_process(toy):
    code = (
        "import sys; from pathlib import Path; from omni2vec.launch.load import load; "
        "from omni2vec.launch.run import Folder, survey; "
        "print(*(s.digest for s in survey(load(Path(sys.argv[1])), Folder(Path('nowhere')))))"
    )
    from omni2vec.launch.run import Folder, survey

    here = [s.digest for s in survey(load(toy), Folder(Path("nowhere")))]
    there = subprocess.run([sys.executable, "-c", code, str(toy)], capture_output=True, text=True, check=True)
    assert there.stdout.split() == here


def test_differences_name_the_field_and_both_values(steps):
    old = steps.Train(steps.Numbers(), weights={"a": 1.0})
    new = replace(old, optimizer=steps.Optimizer(lr=0.2), weights={"a": 1.0, "b": 2.0}, limit=float("inf"))
    a, b = (canonical(s, Path, {"numbers": "x"})["fields"] for s in (old, new))
    assert differences(a, b, "train") == [
        "train.optimizer.lr: 0.1 -> 0.2",
        "train.limit: null -> inf",
        "train.weights.b: (absent) -> 2",
    ]
