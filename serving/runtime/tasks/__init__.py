"""Finds served tasks by name: ``text-classification`` is ``text_classification.TASK``.

There is one module per task. A module whose name begins with an underscore is part of a task.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module

from ..types import JsonValue, without_request_id
from ._encoder import EncoderTask
from .base import ServedTask

MAX_CACHED_CHARACTERS = 4096
"""Longest request parameters that are cached: clients choose them, so the cache must be bounded."""


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


def load_encoder(name: str, settings: Mapping[str, JsonValue]) -> EncoderTask:
    """Rebuild a served task whose model answers in one execution, as :func:`load_served` does.

    Raises:
        KeyError: There is no such task.
        ValueError: A setting is unknown or missing, or models of the task generate their answers.
    """
    task = load_served(name, settings)
    if not isinstance(task, EncoderTask):
        raise ValueError(f"models of {name} generate their answers token by token")
    return task


def parameter_reader(task: EncoderTask) -> Callable[[str], EncoderTask]:
    """Return a function that applies the parameters of a request to ``task``, given as JSON or empty. It caches short ones.

    The function raises ``ValueError`` if a parameter is not allowed; the message is for the client.
    """

    def parse(parameters: str) -> EncoderTask:
        return task.with_options(without_request_id(json.loads(parameters)))

    cached = lru_cache(maxsize=64)(parse)

    def read(parameters: str) -> EncoderTask:
        if not parameters:
            return task
        return cached(parameters) if len(parameters) <= MAX_CACHED_CHARACTERS else parse(parameters)

    return read
