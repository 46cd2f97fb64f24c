"""The name of the model, which benchmark and tune take as an argument or as an option."""

from __future__ import annotations

import click


def chosen_name(ctx: click.Context, model: str | None, name: str | None) -> str:
    """Choose the name of the model. The argument wins over the option, which may come from a recipe.

    Args:
        ctx: Context of the command.
        model: The argument.
        name: The option ``--name``; None or empty: it is not given.

    Returns:
        The name.

    Raises:
        click.UsageError: Neither is given.
    """
    chosen = model or name
    if not chosen:
        raise click.UsageError(f"name the model: {ctx.command_path} NAME", ctx)
    return chosen
