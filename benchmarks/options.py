"""What the options of several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]
NONE = "none"

Callback = Callable[[click.Context, click.Parameter, Any], Any]


def options_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def listed(values: tuple[str, ...], *, may_be_none: bool = False) -> list[str]:
    """The parts of an option that is given several times, or once with commas; ``none`` alone is no part, where it may be given."""
    parts = [part.strip() for value in values for part in value.split(",")]
    return [] if may_be_none and parts == [NONE] else parts


def choices(allowed: tuple[str, ...]) -> Callback:
    """Callback: each of the listed values is one of ``allowed``."""

    def split(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
        found = listed(values)
        for part in found:
            if part not in allowed:
                raise click.BadParameter(f"{part!r} is not one of {', '.join(allowed)}", ctx, parameter)
        return tuple(dict.fromkeys(found))

    return split


def counts(*, may_be_none: bool = False) -> Callback:
    """Callback: the listed values are whole numbers from 1 on; they come in ascending order, each once."""

    def split(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
        parts = listed(values, may_be_none=may_be_none)
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise click.BadParameter("give whole numbers from 1 on, such as 1,4,16", ctx, parameter)
        return tuple(sorted({int(part) for part in parts}))

    return split


exported_model = options_of(
    click.argument("model", metavar="NAME", required=False),
    click.option("--name", metavar="NAME", help="The model's name, in place of the argument."),
    click.option("--artifacts", type=click.Path(path_type=Path), default=Path("artifacts"), help="Folder of what the stages made."),
    click.option("--bundle", type=click.Path(path_type=Path), help="The exported bundle.  [default: ARTIFACTS/NAME/bundle]"),
)
"""Which model, and where it was exported to."""


def chosen_name(ctx: click.Context, model: str | None, name: str | None) -> str:
    """The argument wins over the option, which a recipe may have given."""
    chosen = model or name
    if not chosen:
        raise click.UsageError(f"say which model: {ctx.command_path} NAME", ctx)
    return chosen
