"""Refuses options that are given and would have no effect."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.core import ParameterSource

from serving.click_options import RECIPE
from serving.option_fields import option_fields, parameter_name


def flags_of(cls: type) -> list[str]:
    """Return the flags of a dataclass of options."""
    return [option.flag for option in option_fields(cls)]


def refuse_idle(flags: Iterable[str], reason: str, *, in_recipes: bool = False) -> None:
    """Refuse options that were given to the running command and have no effect.

    A recipe may hold values ready for another call: what it gives is refused only if that is asked for.

    Args:
        flags: The flags.
        reason: Why they have no effect, as the rest of the sentence.
        in_recipes: Whether to refuse what a recipe gives, too.

    Raises:
        click.UsageError: One of them was given.
    """
    ctx = click.get_current_context()
    given = {ParameterSource.COMMANDLINE, ParameterSource.PROMPT, ParameterSource.ENVIRONMENT}
    if in_recipes or RECIPE not in ctx.meta:  # without a recipe, defaults come from the keywords of a Python function
        given.add(ParameterSource.DEFAULT_MAP)
    for flag in flags:
        if ctx.get_parameter_source(parameter_name(flag)) in given:
            raise click.UsageError(f"{flag} has no effect {reason}", ctx)
