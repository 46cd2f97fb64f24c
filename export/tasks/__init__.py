"""Finds tasks by name: ``text-classification`` is ``text_classification.TASK``.

There is one module per task, except :data:`BASES`. A module whose name begins with an underscore is part of a task.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, TypeGuard

from export.tasks._encoder import ExportedEncoderTask
from export.tasks.base import Task
from export.tasks.exported import ExportedTask
from export.tasks.trained import TrainedTask
from serving.errors import ArtifactError, DataError
from serving.runtime.types import JsonValue

if TYPE_CHECKING:
    from serving.bundle import Bundle


BASES = ("base", "exported", "trained")
"""Modules of base classes."""


def task_names() -> list[str]:
    """Return the names of all tasks, as users write them."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in modules if name not in BASES and not name.startswith("_"))


def task_class(name: str) -> type[Task]:
    """Return the class of the task called ``name``.

    Raises:
        KeyError: There is no such task.
    """
    if name not in task_names():
        raise KeyError(name)
    found: type[Task] = import_module(f"{__name__}.{name.replace('-', '_')}").TASK
    return found


def trained_class(name: str) -> type[TrainedTask]:
    """Return the class of the trained task called ``name``.

    Raises:
        DataError: Checkpoints are not fine-tuned for this task.
    """
    task = task_class(name)
    if not issubclass(task, TrainedTask):
        raise DataError(
            f"checkpoints of {task.name} are fine-tuned as {task.trained_as}",
            hint=f"give --task {task.trained_as}, then export",
        )
    return task


def load_task(name: str, settings: Mapping[str, JsonValue]) -> Task:
    """Rebuild a task from its name and what :meth:`Task.to_settings` gave.

    Raises:
        KeyError: There is no such task.
        TypeError: A setting of evaluation is unknown or missing.
        ValueError: A setting of the served half is unknown or missing.
    """
    return task_class(name).from_settings(settings)


def is_exported(task: type[Task]) -> TypeGuard[type[ExportedTask]]:
    """Tell whether checkpoints of a task are exported and served."""
    return issubclass(task, ExportedTask)


def bundle_task(bundle: Bundle) -> ExportedEncoderTask:
    """Return the task of a bundle, ready to evaluate its variants.

    Raises:
        ArtifactError: The bundle's settings are not those of its task.
    """
    task = task_of_bundle(bundle)
    if not isinstance(task, ExportedEncoderTask):
        raise ArtifactError(f"the model of {bundle.folder} does not answer in one execution: {task.name} generates its answers")
    return task


def task_of_bundle(bundle: Bundle) -> Task:
    """Return the task of a bundle with the settings of its evaluation.

    Raises:
        ArtifactError: The bundle's settings are not those of its task.
    """
    settings = bundle.task.to_settings() | bundle.manifest.evaluation_settings
    try:
        return load_task(bundle.task.name, settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{bundle.folder} has settings that its task lacks: {error}", hint="export it again") from error
