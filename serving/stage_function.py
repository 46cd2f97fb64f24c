"""Stages as Python functions: the keywords are the options of the stage's command, and are checked as on the command line."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from serving.click_options import build, option_classes, options_command
from serving.install import NO_TELEMETRY
from serving.option_fields import OptionField, OptionGroup, option_members
from serving.option_values import as_defaults, parameters
from serving.reporting import report_to_stderr
from serving.runtime.suggestions import suggestion

Result = TypeVar("Result")


def stage_function(run: Callable[..., Result]) -> Callable[..., Result]:
    """Decorate the function of a stage, whose parameters are dataclasses of options, so that it takes their fields as keywords.

    The function gets one more keyword: with ``progress=False`` it does not write to standard error. The messages are records of the
    logger ``tritonize`` either way.

    Args:
        run: The function, with annotations that can be resolved at run time.

    Returns:
        A function of keywords. It raises TypeError for a keyword that is unknown or missing, and ValueError for a value that the
        command line would refuse.
    """
    name = run.__name__

    @functools.wraps(run)
    def call(*, progress: bool = True, **keywords: object) -> Result:
        classes = option_classes(run)
        command = options_command(name, classes.values())
        with contextlib.ExitStack() as stack:
            stack.enter_context(_usage_errors())
            ctx = stack.enter_context(command.make_context(name, [], default_map=_default_map(command, keywords)))
            options: dict[str, Any] = {parameter: build(cls, ctx, ctx.params) for parameter, cls in classes.items()}
            for variable, value in NO_TELEMETRY.items():
                os.environ.setdefault(variable, value)
            if progress:
                stack.enter_context(report_to_stderr())
            return run(**options)

    call.__signature__ = _signature(run)  # type: ignore[attr-defined]  # inspect looks for it
    return call


def _default_map(command: click.Command, keywords: Mapping[str, object]) -> dict[str, object]:
    known = parameters(command)
    for keyword in keywords:
        if keyword not in known:
            raise TypeError(f"{command.name}() has no keyword {keyword!r}{suggestion(keyword, known)}")
    values = {keyword: _plain(value) for keyword, value in keywords.items() if value is not None}
    missing = [parameter.name for parameter in command.params if parameter.required and parameter.name not in values]
    if missing:
        raise TypeError(f"{command.name}() needs the keyword {missing[0]!r}")
    return as_defaults(command, values, dashes=False)


def _plain(value: object) -> object:
    """Bring a value into a form that a recipe could hold."""
    if isinstance(value, Path):
        return os.fspath(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return dict(value) if isinstance(value, Mapping) else value


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Raise ValueError in place of Click's errors, and name keywords where they name flags."""
    try:
        yield
    except click.BadParameter as error:
        name = error.param_hint or (error.param.name if error.param is not None else None)
        where = f"{str(name).strip('-').replace('-', '_')}: " if name else ""
        raise ValueError(f"{where}{error.message}") from None
    except click.UsageError as error:
        raise ValueError(error.message) from None


def _signature(run: Callable[..., object]) -> inspect.Signature:
    """Describe the keywords, for :func:`help` and for completion in notebooks. Those that are required come first."""
    options = [option for cls in option_classes(run).values() for option in _options(cls, optional=False)]
    progress = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=True, annotation=bool)
    keywords = sorted(options, key=lambda keyword: keyword.default is not inspect.Parameter.empty)
    return inspect.Signature([*keywords, progress], return_annotation=run.__annotations__["return"])


def _options(cls: type, *, optional: bool) -> Iterator[inspect.Parameter]:
    for member in option_members(cls):
        if isinstance(member, OptionGroup):
            yield from _options(member.cls, optional=optional or member.optional)
        else:
            yield _keyword(member, required=member.required and not optional)


def _keyword(option: OptionField, *, required: bool) -> inspect.Parameter:
    kind: Any = option.kind
    if option.repeatable:
        kind = Mapping[str, Any] if kind is Mapping else tuple[kind, ...]
    default = inspect.Parameter.empty if required else option.default
    return inspect.Parameter(
        option.parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind | None if default is None else kind
    )
