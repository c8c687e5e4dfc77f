"""Which steps there are, in which order, and what is wrong with a graph."""

from dataclasses import dataclass, field

import pytest
from omni2vec.data.types import Step
from omni2vec.launch.graph import Recipe, check, needs, order
from omni2vec.launch.words import RecipeError


@dataclass(frozen=True)
class Node:
    name: str
    on: tuple[Step, ...] = ()
    by_name: dict[str, object] = field(default_factory=dict)
    value: int = 0

    def make(self, out, where):
        pass


@dataclass(frozen=True)
class Holder:
    """No step: a source, say, that stands on one."""

    at: Step


@dataclass
class Loose:
    x: int = 0


def names(steps):
    return [s.name for s in steps]


def test_needed_steps_come_first_and_each_once():
    a = Node("a")
    b, c = Node("b", (a,)), Node("c", (a,))
    assert names(order((Node("d", (b, c)),))) == ["a", "b", "c", "d"]


def test_steps_are_found_in_tuples_mappings_and_dataclasses():
    a, b, c = Node("a"), Node("b"), Node("c")
    top = Node("top", (a,), {"x": Holder(b), "y": (Holder(c),)})
    assert names(needs(top)) == ["a", "b", "c"]


def test_a_chain_deeper_than_recursion_is_ordered():
    step = Node("s0")
    for i in range(1, 3000):
        step = Node(f"s{i}", (step,))
    assert names(order((step,))) == [f"s{i}" for i in range(3000)]


def test_equal_steps_of_one_name_are_one_step():
    assert names(order((Node("b", (Node("a"),)), Node("c", (Node("a"),))))) == ["a", "b", "c"]


def test_different_steps_of_one_name_are_both_named():
    with pytest.raises(RecipeError) as error:
        order((Node("b", (Node("a", value=1),)), Node("c", (Node("a", value=2),))))
    assert "'a'" in str(error.value) and "value=1" in str(error.value) and "value=2" in str(error.value)


def test_two_steps_of_one_name_inside_one_step_are_seen():
    with pytest.raises(RecipeError, match="two different steps"):
        order((Node("b", (Node("a", value=1), Node("a", value=2))),))


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "..", "-a", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(name):
    with pytest.raises(RecipeError, match="names a folder"):
        order((Node(name),))


def test_a_field_of_another_type_is_refused():
    with pytest.raises(RecipeError, match=r"step 'a'.*Node\.value is '3', expected int"):
        check(Node("a", value="3"), "step 'a'")


def test_a_dataclass_that_is_not_frozen_is_refused():
    with pytest.raises(RecipeError, match="Loose is not frozen"):
        check(Node("a", by_name={"x": Loose()}), "step 'a'")


def test_a_recipe_equals_another_of_equal_steps():
    assert Recipe("r", (Node("a"),)) == Recipe("r", (Node("a"),)) != Recipe("r", (Node("a", value=1),))
