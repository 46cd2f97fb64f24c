"""Options that ``finetune`` and ``export`` have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from export.data import Columns

Command = TypeVar("Command", bound=Callable[..., Any])


def options_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def _plain_name(_ctx: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise click.BadParameter(f"{name!r}: letters, digits, '_', '-' and '.' only, and neither of the last two first")
    return name


def _repository_name(_ctx: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    """Callback: refuse what is no ``OWNER/NAME`` (or ``NAME``) before anything is made that could not be shared."""
    if name is not None and not re.fullmatch(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]{0,95}", name):
        raise click.BadParameter(f"{name!r} is no repository of the Hub: OWNER/NAME")
    return name


def _known_task(_ctx: click.Context, _parameter: click.Parameter, task: str) -> str:
    from export.tasks import task_names

    if task not in task_names():
        raise click.BadParameter(f"{task!r} is not one of {', '.join(task_names())}")
    return task


class Number(click.FloatRange):
    """A number in a range, which what is none (nan) and what is endless are not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number to train with", param, ctx)
        return number


class Setting(click.ParamType[dict[str, Any]]):
    """``"pooling=cls"`` → ``{"pooling": "cls"}``; a recipe may give a table."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        key, equals, chosen = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not of the form KEY=VALUE", param, ctx)
        return {key.strip().replace("-", "_"): chosen.lstrip()}  # a prefix of texts may end in a space


def take_setting(given: dict[str, Any]) -> dict[str, Any]:
    """The task's settings that were chosen, checked."""
    from export.tasks import task_class

    chosen = {key: value for one in given.pop("setting") for key, value in one.items()}
    try:
        return task_class(given["task"]).check_settings(chosen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--setting") from None


shared_options = options_of(
    click.option("--name", default="model", callback=_plain_name, help="Name of the model: its folder's, and its own in Triton."),
    click.option("--task", default="text-classification", callback=_known_task, help="What the model does."),
    click.option(
        "--setting", type=Setting(), multiple=True, metavar="KEY=VALUE", help="What the task leaves to choose, such as pooling=cls."
    ),
    click.option("--artifacts", type=click.Path(path_type=Path, file_okay=False), default="artifacts", help="Of all artifacts."),
    click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", help="Where to compute."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of every random choice."),
    click.option("--force", is_flag=True, help="Run even where nothing has changed since the last run."),
    click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON on standard output."),
)
sharing_options = options_of(
    click.option(
        "--push-to-hub", callback=_repository_name, metavar="OWNER/NAME", help="Upload the artifact to the Hugging Face Hub."
    ),
    click.option("--private", is_flag=True, help="Make that repository a private one, if it is not there yet."),
)
column_options = options_of(
    click.option("--text-column", default=None, show_default="as the task has it", help="Column of the text, or the first of two."),
    click.option("--text-pair-column", default=None, help="Column of the second text."),
    click.option(
        "--choice-column",
        multiple=True,
        show_default="as the task has it",
        help="Column of the choices; several: of one choice each.",
    ),
    click.option(
        "--label-column",
        multiple=True,
        show_default="as the task has it",
        help="Column of what is right; several: one for each label, 1 in the rows that have it.",
    ),
)


def max_length_option(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--max-length", type=click.IntRange(min=4), default=None, show_default=default, help="Tokens kept of a row."
    )


def take_columns(given: dict[str, Any]) -> Columns:
    from export.data import Columns

    label = tuple(given.pop("label_column"))
    return Columns(
        text=given.pop("text_column"),
        text_pair=given.pop("text_pair_column"),
        choices=tuple(given.pop("choice_column")),
        label=label[0] if len(label) == 1 else None,
        labels=label if len(label) > 1 else (),
    )
