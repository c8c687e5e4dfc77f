"""The toy recipe, loaded: its file, and its module with the toy steps."""

from pathlib import Path
from types import ModuleType

import pytest
from omni2vec.launch.load import module_of

TOY = Path(__file__).parent / "toy_recipe.py"


@pytest.fixture
def toy() -> Path:
    return TOY


@pytest.fixture(scope="session")
def steps() -> ModuleType:
    return module_of(TOY)
