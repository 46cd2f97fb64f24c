"""What the options of several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def percent(ctx: click.Context, parameter: click.Parameter, value: str) -> float:
    """Callback: ``10%`` as 0.1."""
    number = value.strip().removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not value.strip().endswith("%") or not 0 <= share < 10:
        raise click.BadParameter(f"{value!r} is not a percentage such as 10%", ctx, parameter)
    return share


def tolerances(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--max-regression`` and ``--max-quality-drop``."""
    for option in (
        click.option(
            "--max-quality-drop",
            type=click.FloatRange(min=0),
            default=0.5,
            help="Points a metric or the agreement with the original may be below the baseline's.",
        ),
        click.option(
            "--max-regression",
            default="10%",
            callback=percent,
            help="How much worse than the baseline a speed may be; where noise explains more, that much.",
        ),
    ):
        command = option(command)
    return command
