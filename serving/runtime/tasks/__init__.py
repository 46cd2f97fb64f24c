"""Finds served tasks by name: ``text-classification`` is ``text_classification.TASK``.

There is one module per task. A module whose name begins with an underscore is part of a task.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from ..types import JsonValue
from .base import ServedTask


def served_names() -> list[str]:
    """Return the names of all served tasks, as users write them."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in modules if name != "base" and not name.startswith("_"))


def served_class(name: str) -> type[ServedTask]:
    """Return the class of the served task called ``name``.

    Raises:
        KeyError: There is no such task.
    """
    if name not in served_names():
        raise KeyError(name)
    found: type[ServedTask] = import_module(f".{name.replace('-', '_')}", __name__).TASK
    return found


def load_served(name: str, settings: Mapping[str, JsonValue]) -> ServedTask:
    """Rebuild a served task from its name and what :meth:`ServedTask.to_settings` gave.

    Raises:
        KeyError: There is no such task.
        ValueError: A setting is unknown or missing.
    """
    return served_class(name).from_settings(settings)
