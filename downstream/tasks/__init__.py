"""What can be learned from labels: one module each, found by its name."""

from importlib import import_module

from downstream.task import Task

NAMES = ("classify", "instances", "segment", "smse")
ON_FEATURES = ("linear", "knn", "mil")  # whose encoder is frozen, and which have no class here


def task_class(name: str) -> type[Task]:
    """The class of a task."""
    found = import_module(f"downstream.tasks.{name}")
    return getattr(found, name.title())
