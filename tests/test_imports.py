"""Who imports whom, read from the source: one direction, no cycles, heavy packages kept to their place."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("data", "model", "eval", "train", "launch", "recipes")  # each may import itself and those before it
OUTSIDE = ("tests", "benchmarks")

# Where a package may be imported at all, as prefixes of paths.
PLACES = {
    "deepspeed": ("train/zero_engine.py",),
    "wandb": ("train/monitor.py",),
    "webdataset": ("data/shards.py", "data/loader.py"),
    "open_clip": ("model/backbones/clip.py", "model/adapters/"),
}
# Optional or heavy: inside the function that needs them, so that what does not need them does not pay.
INSIDE_FUNCTIONS = {
    *PLACES,
    "torchvision",
    "av",
    "soundfile",
    "sentence_transformers",
    "faiss",
    "mteb",
    "pymetis",
    "sklearn",
}


@dataclass(frozen=True)
class Import:
    """One import: the file and line, the module (dotted, absolute), and whether it runs when the file is imported."""

    file: str
    line: int
    module: str
    relative: bool
    at_import: bool

    @property
    def folder(self) -> str:
        return self.file.split("/")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def files(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def package_of(path: Path) -> list[str]:
    return ["omni2vec", *path.relative_to(ROOT).parent.parts]


def later(tree: ast.Module) -> set[int]:
    """Ids of the nodes that do not run on import: bodies of functions and of `if TYPE_CHECKING`."""
    found: set[int] = set()
    for node in ast.walk(tree):
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if guarded or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    return found


def imports_of(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    file, package, lazy = path.relative_to(ROOT).as_posix(), package_of(path), later(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, False, id(node) not in lazy)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                module = inner if base.split(".")[0] == "omni2vec" and is_module(inner) else base
                yield Import(file, node.lineno, module, node.level > 0, id(node) not in lazy)


@cache
def every(*folders: str) -> tuple[Import, ...]:
    return tuple(i for path in files(*folders) for i in imports_of(path))


def told(found: Iterator[Import]) -> str:
    return "\n".join(sorted({str(i) for i in found}))


def test_imports_are_found():
    """The other tests here would pass on an empty list."""
    found = {(i.file, i.module, i.at_import) for i in every(*ORDER)}
    assert ("data/relation.py", "omni2vec.data.types", True) in found
    assert ("launch/run_verbs.py", "omni2vec.launch.load", False) in found


def test_folders_import_themselves_and_lower_ones():
    ours = [i for i in every(*ORDER) if i.module.startswith("omni2vec.")]
    wrong = (i for i in ours if i.module.split(".")[1] not in ORDER[: ORDER.index(i.folder) + 1])
    assert not (text := told(wrong)), text


@pytest.mark.parametrize("folder", ORDER)
def test_no_cycle_inside_a_folder(folder):
    edges: dict[str, set[str]] = {}
    for i in every(folder):
        name = ".".join(["omni2vec", *Path(i.file).with_suffix("").parts]).removesuffix(".__init__")
        if i.at_import and i.module.startswith(f"omni2vec.{folder}") and i.module != name:
            edges.setdefault(name, set()).add(i.module)
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", PLACES)
def test_a_package_is_imported_in_its_place_alone(package):
    wrong = (i for i in every(*ORDER) if i.module.split(".")[0] == package and not i.file.startswith(PLACES[package]))
    assert not (text := told(wrong)), text


def test_optional_packages_are_imported_inside_functions():
    wrong = (i for i in every(*ORDER) if i.at_import and i.module.split(".")[0] in INSIDE_FUNCTIONS)
    assert not (text := told(wrong)), text


def test_the_library_imports_itself_relatively():
    wrong = (i for i in every(*ORDER[:-1]) if i.module.split(".")[0] == "omni2vec" and not i.relative)
    assert not (text := told(wrong)), text


def test_recipes_benchmarks_and_tests_import_the_library_absolutely():
    own = tuple(f"omni2vec.{folder}" for folder in OUTSIDE)
    wrong = (i for i in every("recipes", *OUTSIDE) if i.relative and not i.module.startswith(own))
    assert not (text := told(wrong)), text


def test_nothing_imports_a_recipe():
    wrong = (i for i in every(*ORDER) if i.module.startswith("omni2vec.recipes."))
    assert not (text := told(wrong)), text


def test_every_folder_of_the_library_is_packaged():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        ".".join(["omni2vec", *p.parent.relative_to(ROOT).parts]) for p in files(*ORDER) if p.name == "__init__.py"
    }
    assert listed == {"omni2vec", *there}


@pytest.mark.parametrize("module", ["omni2vec", "omni2vec.data.types", "omni2vec.launch.run", "omni2vec.launch.load"])
def test_quick_modules_import_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
