"""Options that fine-tuning and export have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import click

from export.columns import Columns
from serving.errors import DataError
from serving.option_fields import Option
from serving.options import MODEL_NAME, ArtifactsOptions, Device

if TYPE_CHECKING:
    from export.tasks.base import Task

Stage = TypeVar("Stage", bound="StageOptions")
ChosenTask = TypeVar("ChosenTask", bound="Task")


def parse_task(text: str) -> str:
    """Check that there is a task of this name.

    Args:
        text: The name.

    Returns:
        The name.

    Raises:
        ValueError: There is no such task; the message lists all.
    """
    known = [task.name for task in _tasks()]
    if text not in known:
        raise ValueError(f"{text!r} is not one of {', '.join(known)}")
    return text


def parse_hub_repository(text: str) -> str:
    """Check the name of a repository on the Hugging Face Hub before anything is computed.

    Args:
        text: ``OWNER/NAME``, or ``NAME`` for a repository of the user.

    Returns:
        The name.

    Raises:
        ValueError: The name is not valid.
    """
    if not re.fullmatch(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]{0,95}", text, re.ASCII):
        raise ValueError(f"{text!r} is not the name of a repository on the Hub: give OWNER/NAME")
    return text


def _tasks() -> list[type[Task]]:
    """Return the classes of all tasks. Options use them only through this function."""
    from export.tasks import task_class, task_names

    return [task_class(name) for name in task_names()]


def _task_settings(task: type[Task]) -> Iterator[str]:
    """Describe the settings of a task: name, choices or kind, and default."""
    defaults = task.setting_defaults()
    kinds = {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT"}
    for name, setting in sorted(task.known_settings().items()):
        default = defaults.get(name)
        text = "unset" if default in {None, ""} else json.dumps(default)
        yield f"{name}={'|'.join(setting.choices) or kinds[setting.kind]} [{text}]"


def _task_help() -> str:
    return f"Task of the model: {', '.join(task.name for task in _tasks())}."


def _setting_help() -> str:
    described = (f"{task.name}: {', '.join(settings)}." for task in _tasks() if (settings := [*_task_settings(task)]))
    meaning = "Setting of the task. The default in brackets holds unless the checkpoint has a value of its own. Repeatable."
    generated = "For models that generate, export also takes options of a request, such as do_sample=false."
    return "\n\n".join([meaning, *described, generated])


TASK = Option(_task_help, parse=parse_task, metavar="TASK", shared=True)
"""The option ``--task``; each stage describes its own default."""

METRIC = Option("Main metric, such as f1_macro or matthews_correlation. An unknown name lists the metrics of the task.")
"""The option ``--metric``; each stage says what it decides."""


@dataclass(frozen=True, kw_only=True)
class StageOptions(ArtifactsOptions):
    """Options that fine-tuning and export have in common."""

    name: Annotated[str, MODEL_NAME] = ""
    task: Annotated[str, TASK] = ""
    setting: Annotated[Mapping[str, Any], Option(_setting_help, metavar="KEY=VALUE", default_text="")] = field(default_factory=dict)
    metric: Annotated[str | None, METRIC] = None
    device: Device = "auto"
    columns: Columns = field(default_factory=Columns)


def refuse_idle_settings(task: Task, given: Mapping[str, object]) -> None:
    """Refuse settings that have no effect for a checkpoint.

    Args:
        task: The task, bound to the checkpoint or to its labels.
        given: The settings that the user gave for this stage.

    Raises:
        click.BadParameter: There is one.
    """
    for name, reason in task.idle_settings().items():
        if name in given:
            raise click.BadParameter(f"{name} has no effect: {reason}", param_hint="--setting")


def refuse_serving_settings(task: Task, given: Mapping[str, object]) -> None:
    """Refuse settings of the served model in training.

    Args:
        task: The task.
        given: The settings that the user gave.

    Raises:
        click.BadParameter: There is one.
    """
    if later := task.serving_settings(given):
        raise click.BadParameter(f"{', '.join(later)} has no effect on training: give it to export", param_hint="--setting")


def refuse_idle_columns(columns: Columns, task: str) -> None:
    """Refuse columns that a task does not read.

    Args:
        columns: The columns that the user names.
        task: The name of the task.

    Raises:
        click.UsageError: There is one.
    """
    (found,) = (one for one in _tasks() if one.name == task)
    if columns.text_pair is not None and not (found.takes_pairs or found.columns["text_pair"]):
        raise click.UsageError(f"--text-pair-column has no effect for {task}: its rows have one text")
    if columns.choices and found.columns.get("choices") is None:
        raise click.UsageError(f"--choice-column has no effect for {task}: its rows have no choices")


@dataclass(frozen=True, kw_only=True)
class SharingOptions:
    """Whether an artifact is uploaded to the Hugging Face Hub."""

    push_to_hub: Annotated[
        str | None,
        Option(
            "Upload the artifact to this repository on the Hugging Face Hub.",
            metavar="OWNER/NAME",
            parse=parse_hub_repository,
        ),
    ] = None
    private: Annotated[bool, Option("Create that repository as a private one, if it does not exist.")] = False


def with_chosen_metric(task: ChosenTask, name: str | None) -> ChosenTask:
    """Return the task with the main metric that the user chose.

    Args:
        task: The task, bound to its labels.
        name: The metric; None: the task's own.

    Raises:
        DataError: It is none of the task's metrics. The message lists them.
    """
    try:
        return task if name is None else task.with_metric(name)
    except ValueError as error:
        raise DataError(str(error), hint="see --metric") from None


def with_checked_setting(options: Stage) -> Stage:
    """Check the chosen settings against the task, and convert them to their types.

    Args:
        options: With settings as given: strings from the command line, or values of a recipe.

    Returns:
        The options with typed settings.

    Raises:
        click.BadParameter: The task has no such setting, or does not allow the value.
    """
    (task,) = (task for task in _tasks() if task.name == options.task)
    try:
        return replace(options, setting=task.check_settings(options.setting))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--setting") from None
