"""A recipe's file, its settings and its overrides: what is accepted, and what each error says."""

import re
from pathlib import Path

import pytest
from omni2vec.launch.load import load
from omni2vec.launch.words import RecipeError


def by_name(recipe):
    return {s.name: s for s in recipe.steps}


def refused(path, *words):
    with pytest.raises(RecipeError) as error:
        load(path, words)
    return str(error.value)


def written(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text(body)
    return path


STEP = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Stage:
    name: str
    steps: int = 1
    rate: float = 0.5

    def make(self, out, where):
        pass
"""


def test_a_recipe_is_called_with_its_defaults(toy):
    recipe = load(toy)
    assert recipe.name == "toy_recipe"
    assert [s.name for s in recipe.steps] == ["numbers", "train", "again", "report"]
    assert by_name(recipe)["numbers"].count == 3


def test_settings_are_typed(toy):
    recipe = load(toy, ["count=7", "kind=down"])
    assert by_name(recipe)["numbers"].count == 7 and by_name(recipe)["numbers"].kind == "down"
    assert [s.name for s in recipe.settings if s.given] == ["count", "kind"]


def test_a_settings_value_may_hold_dots(toy):
    assert by_name(load(toy, ["data=../data/some.txt"]))["train"].sources[0].path == "../data/some.txt"


def test_an_unknown_setting_lists_the_settings_and_suggests(toy):
    message = refused(toy, "cuont=7")
    assert "no setting 'cuont'. Did you mean 'count'?" in message
    assert "count: int = 3" in message and "kind: up | down = 'up'" in message


def test_a_setting_of_the_wrong_type_says_what_was_expected(toy):
    assert "setting 'count': got 'many', expected int" in refused(toy, "count=many")


@pytest.mark.parametrize("word", ["count", "=3"])
def test_a_word_without_name_or_value_is_refused(toy, word):
    assert "expected setting=value or step.field=value" in refused(toy, word)


def test_a_word_given_twice_is_refused(toy):
    assert "given twice: 1 and 2" in refused(toy, "count=1", "count=2")


def test_an_override_reaches_every_step_that_holds_the_changed_one(toy):
    steps = by_name(load(toy, ["numbers.count=9"]))
    assert steps["numbers"].count == steps["train"].data.count == steps["again"].data.count == 9
    assert steps["report"].of == (steps["train"], steps["again"])


@pytest.mark.parametrize(
    ("word", "read", "value"),
    [
        ("train.optimizer.lr=1e-3", lambda s: s.optimizer.lr, 0.001),
        ("train.optimizer.betas=0.8,0.9", lambda s: s.optimizer.betas, (0.8, 0.9)),
        ("train.weights.other=4", lambda s: s.weights, {"lines": 1.0, "other": 4.0}),
        ("train.limit=2", lambda s: s.limit, 2.0),
        ("train.sources.0.name=mine", lambda s: s.sources[0].name, "mine"),
    ],
)
def test_an_override_goes_through_dataclasses_mappings_and_tuples(toy, word, read, value):
    assert read(by_name(load(toy, ["data=x.txt", word]))["train"]) == value


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("tran.steps=2", ("no step 'tran'. Did you mean 'train'?", "numbers, train, again, report")),
        ("train.step=2", ("Train has no field 'step'. Did you mean 'steps'?", "slow_s: float")),
        ("train.optimizer.lrr=2", ("Optimizer has no field 'lrr'", "betas: float,float")),
        ("train.steps=two", ("got 'two', expected int",)),
        ("train.steps.x=2", ("train.steps is 5, which has no fields",)),
        ("train.weights.lime=2", ("no key 'lime'", "lines, other")),
        ("train.sources.3.name=x", ("expected a place from 0 to 0, got '3'",)),
        ("train.data.count=2", ("is the step 'numbers'; write numbers.count=2",)),
        ("train.name=x", ("a step's name cannot be overridden",)),
        ("numbers.count=0", ("'numbers.count=0': numbers: count=0, expected 1 or more",)),
        ("numbers.kind=sideways", ("got 'sideways', expected up | down",)),
    ],
)
def test_a_wrong_override_says_what_there_is(toy, word, parts):
    message = refused(toy, "data=x.txt", word)
    for part in parts:
        assert part in message


def test_a_wrong_field_in_a_recipe_names_file_line_and_fields(tmp_path):
    path = written(tmp_path, STEP + "def recipe():\n    return Stage('a', step=2)\n")
    message = refused(path)
    assert f"{path}, line 13: Stage has no field 'step'. Did you mean 'steps'?" in message and "rate: float" in message


def test_a_value_that_its_class_refuses_comes_with_the_recipes_line(toy):
    assert re.search(r"toy_recipe\.py, line \d+: numbers: count=0, expected 1 or more", refused(toy, "count=0"))


def test_a_missing_field_in_a_recipe_is_named(tmp_path):
    assert "Stage needs the field 'name'" in refused(written(tmp_path, STEP + "def recipe():\n    return Stage()\n"))


def test_a_field_of_the_wrong_type_in_a_recipe_is_named(tmp_path):
    path = written(tmp_path, STEP + "def recipe():\n    return Stage('a', steps='2')\n")
    assert "step 'a': Stage.steps is '2', expected int" in refused(path)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("x = 1\n", "has no function `recipe`"),
        ("def recipe():\n    return 3\n", "returned int"),
        ("def recipe():\n    return ()\n", "returned tuple"),
        ("def recipe(:\n", "line 1"),
        ("def recipe(x=1):\n    return 3\n", "setting 'x' needs a name and a type"),
        ("def recipe(x: int):\n    return 3\n", "setting 'x' has no default; give x=INT"),
        ("def recipe(**rest: int):\n    return 3\n", "setting 'rest' needs a name and a type"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, body, part):
    assert part in refused(written(tmp_path, body))


def test_a_missing_file_is_refused(tmp_path):
    assert "no such recipe" in refused(tmp_path / "none.py")


def test_an_error_of_the_recipes_own_code_keeps_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError):
        load(written(tmp_path, "def recipe():\n    return 1 / 0\n"))


def test_an_override_makes_the_value_of_an_optional_field_that_holds_none():
    from omni2vec.train.zero import Zero

    path = Path(__file__).parents[2] / "recipes" / "quickstart.py"
    assert by_name(load(path, ["train.zero.stage=3"]))["train"].zero == Zero(stage=3)
    assert "Zero has no field 'stages'" in refused(path, "train.zero.stages=3")


EMPTY = """
@dataclass(frozen=True)
class Weighted:
    pass

@dataclass(frozen=True)
class Mixed(Stage):
    mix: Weighted = Weighted()

def recipe():
    return Mixed("train")
"""


def test_an_override_of_a_value_without_fields_says_so(tmp_path):
    message = refused(written(tmp_path, STEP + EMPTY), "train.mix.every=10")
    assert message.endswith(
        "Weighted has no fields, so no 'every'; where another kind has, write mix=... of it in the recipe."
    )


@pytest.mark.parametrize("body", ["def recipe():\n    return family('none')\n", "made = family('none')\n"])
def test_a_value_that_a_function_of_the_library_refuses_comes_with_the_recipes_line(tmp_path, body):
    path = written(tmp_path, "from omni2vec.data.templates import family\n" + body)
    line = 3 if "def" in body else 2
    assert refused(path).startswith(f"{path}, line {line}: instructions 'none' are not known; expected one of")
