"""What can be learned from labels: one module each, found by its name."""

from importlib import import_module
from typing import Any

from downstream.task import Task

NAMES = ("instances",)


def task_class(name: str) -> type[Task]:
    """The class of a task."""
    found: Any = import_module(f"downstream.tasks.{name}")
    return found.Instances
