"""Typed values of options, from a recipe or from keyword arguments. They become Click's defaults, so Click checks them."""

from __future__ import annotations

from collections.abc import Mapping

import click


def parameters(command: click.Command) -> dict[str, click.Parameter]:
    """Return what may be set: options and arguments of a command, by name."""
    return {parameter.name: parameter for parameter in command.params if parameter.name is not None}


def as_defaults(command: click.Command, values: Mapping[str, object], *, where: str = "", dashes: bool = True) -> dict[str, object]:
    """Bring typed values into the form of Click's defaults.

    A single value of a repeatable option need not be a list.

    Args:
        command: The command.
        values: Values by the name of the parameter; all must exist.
        where: Where they come from, in front of error messages.
        dashes: Whether error messages write names with dashes, as in recipes.

    Returns:
        A default map for the command.

    Raises:
        click.UsageError: A value is of a type that no command line can give for the option, such as a table, or a fraction for an
            integer: Click would fail on it or round it.
    """
    known = parameters(command)
    given = {key: [value] if _takes_list(known[key]) and not isinstance(value, list) else value for key, value in values.items()}
    for key, value in given.items():
        for one in value if isinstance(value, list) and _takes_list(known[key]) else [value]:
            if not _fits(known[key], one):
                shown = key.replace("_", "-") if dashes else key
                raise click.UsageError(f"{where}{shown} cannot be {one!r:.80}")
    return given


def _fits(parameter: click.Parameter, value: object) -> bool:
    if isinstance(value, dict):
        return _takes_list(parameter)
    no_integer = isinstance(value, float) and not value.is_integer() and isinstance(parameter.type, type(click.INT))
    return isinstance(value, str | int | float) and not no_integer


def _takes_list(parameter: click.Parameter) -> bool:
    """Return whether a parameter takes several values: a repeatable option, or a variadic argument."""
    return parameter.nargs == -1 or (isinstance(parameter, click.Option) and parameter.multiple)
