"""A small synthetic world with exact answers: the embedded default. Importing it takes no torch."""

from .step import World
from .tasks import TASKS, examples

__all__ = ["TASKS", "World", "examples"]
