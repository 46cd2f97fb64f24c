"""One module per task, found by its name: ``text-classification`` is ``text_classification.TASK``. A module whose
name begins with an underscore is part of a task."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from .base import Task


def names() -> list[str]:
    """Every task there is, as users write it."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in modules if name != "base" and not name.startswith("_"))


def task_class(name: str) -> type[Task]:
    """The class of the task called ``name``.

    Raises:
        KeyError: there is no such task.
    """
    if name not in names():
        raise KeyError(name)
    found: type[Task] = import_module(f".{name.replace('-', '_')}", __name__).TASK
    return found


def load_task(name: str, settings: dict[str, Any]) -> Task:
    """Rebuild a task from its name and what :meth:`Task.settings` gave."""
    return task_class(name).from_settings(settings)
