"""Click options made from the fields of dataclasses that :mod:`serving.option_fields` describes.

A command names its options as typed parameters::

    @click.command("serve")
    @with_options
    def serve_command(options: ServeOptions) -> None: ...

Only given values are passed to the dataclass: a default exists on the field alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource
from click.types import OptionHelpExtra

from serving.option_fields import NONE, Option, OptionField, OptionGroup, option_fields, option_members, parameter_name
from serving.options import ServerPort
from serving.reporting import logger
from serving.server_naming import server_named

T = TypeVar("T")
RECIPE, RECIPE_STEM = "tritonize.recipe", "tritonize.recipe_stem"
"""Keys in the metadata of a Click context: the recipe, and the name of the user's recipe file without its suffix."""


class FieldOption(click.Option):
    """A Click option that is made from a dataclass field.

    Attributes:
        source: The field.
        former: Whether this is a former spelling, which is hidden and causes a message when it is used.
    """

    def __init__(
        self, declarations: list[str], *, source: OptionField, required: bool, former: bool = False, **settings: Any
    ) -> None:
        """Make the option.

        Args:
            declarations: Flag, and the name of the parameter.
            source: The field.
            required: Whether the command fails without it.
            former: Whether the flag is a former spelling.
            **settings: Further arguments of :class:`click.Option`.
        """
        self.source = source
        self.former = former
        option = source.option
        kind: dict[str, Any] = {"is_flag": True} if source.kind is bool else {"type": _click_type(source.kind, option)}
        if not required:  # to Click, a default of None is a default
            kind["default"] = source.default if option.parse is None else None
        super().__init__(
            declarations,
            show_default=False,
            required=required,
            multiple=source.repeatable,
            metavar=option.metavar,
            help=option.help if isinstance(option.help, str) else option.help(),
            hidden=former,
            **kind,
            **settings,
        )

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """Show the default of the field as :attr:`OptionField.default_text` describes it.

        Args:
            ctx: Context of the command.

        Returns:
            The contents of the brackets after the help text.
        """
        extra = super().get_help_extra(ctx)
        if not self.required and self.source.default_text is not None:
            extra["default"] = self.source.default_text
        return extra


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command function: every parameter that is annotated with a dataclass is built from command-line options.

    Other parameters are left to further Click decorators.

    Args:
        function: The command, with annotations that can be resolved at run time.

    Returns:
        The function for :func:`click.command`.
    """
    classes = option_classes(function)

    @functools.wraps(function)
    def run(*arguments: object, **values: object) -> None:
        ctx = click.get_current_context()
        own = {parameter.name for parameter in ctx.command.params if isinstance(parameter, FieldOption)}
        others = {name: value for name, value in values.items() if name not in own}
        built: dict[str, object] = {name: build(cls, ctx, values) for name, cls in classes.items()}
        server = next((options for options in built.values() if isinstance(options, ServerPort)), None)
        with contextlib.nullcontext() if server is None else server_named(server):
            function(*arguments, **others, **built)

    options = [option for cls in classes.values() for option in _click_options(cls, optional=False)]
    for declarations, settings in reversed(options):
        run = click.option(*declarations, cls=FieldOption, **settings)(run)
    return run


def option_classes(function: Callable[..., object]) -> dict[str, type]:
    """Return the parameters of a function that are annotated with a dataclass: name → dataclass."""
    hints = {name: hint for name, hint in get_type_hints(function).items() if name != "return"}
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)}


def options_command(name: str, classes: Iterable[type]) -> click.Command:
    """Make a command that does nothing but read the options of some dataclasses.

    Args:
        name: Name of the command.
        classes: The dataclasses.

    Returns:
        The command.
    """
    options = (option for cls in classes for option in _click_options(cls, optional=False))
    return click.Command(name, params=[FieldOption(declarations, **settings) for declarations, settings in options])


def build(cls: type[T], ctx: click.Context, values: Mapping[str, object]) -> T:
    """Build a dataclass from the values of a command's options; what was not given keeps its default.

    Args:
        cls: The dataclass.
        ctx: Context of the command.
        values: Values by parameter name.

    Returns:
        The dataclass.

    Raises:
        click.UsageError: An option of an optional group is given without the one that the group requires.
    """
    found: dict[str, Any] = {}
    for member in option_members(cast(type, cls)):
        if isinstance(member, OptionField):
            given = _given_as(member, ctx)
            if given is None:
                continue
            if given != member.parameter:
                logger.warning(f"--{given.replace('_', '-')} is now {member.flag}; the old name will be removed")
            found[member.field.name] = _collected(member, values[given])
        elif not member.optional or _given_as(member.key, ctx) is not None:
            found[member.name] = build(member.cls, ctx, values)
        else:
            _refuse_incomplete(member, ctx)
    return cls(**found)


def given_fields(cls: type, ctx: click.Context) -> tuple[str, ...]:
    """Name the fields of a dataclass that the user has set, on the command line or in a recipe.

    Args:
        cls: The dataclass, whose options the command has.
        ctx: Context of the command.

    Returns:
        Names of the fields.
    """
    return tuple(option.field.name for option in option_fields(cls) if _given_as(option, ctx) is not None)


def parse_key_value(text: str) -> tuple[str, str]:
    """Read ``KEY=VALUE``.

    Args:
        text: Such as ``pooling=cls``; spaces at the end of the value are kept.

    Returns:
        Key, with underscores, and value.

    Raises:
        ValueError: It has no ``=``, or no key.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not of the form KEY=VALUE")
    if not key.strip():
        raise ValueError(f"the name in front of = is empty in {text!r}")
    return key.strip().replace("-", "_"), value.lstrip()


class _Number(click.FloatRange):
    """A number within a range. It is never NaN, and infinite only where :attr:`Option.may_be_infinite` is set."""

    may_be_infinite = False

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number) or (math.isinf(number) and not self.may_be_infinite):
            self.fail(f"{value} is not a {'' if self.may_be_infinite else 'finite '}number", param, ctx)
        return number


class ParsedText(click.ParamType[object]):
    """A value that a function such as :attr:`Option.parse` reads. Recipes may give numbers in place of strings."""

    name = "text"

    def __init__(self, parse: Callable[[str], object]) -> None:
        """Create the type from the function, which raises :exc:`ValueError` for a text that it refuses."""
        self.parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Parse the value."""
        try:
            return self.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Pairs(click.ParamType[dict[str, object]]):
    """One entry of a mapping as ``KEY=VALUE``; a recipe may give a table."""

    name = "key=value"

    def __init__(self, parse: Callable[[str], object]) -> None:
        self.parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, object]:
        try:
            pairs = value if isinstance(value, dict) else self._pair(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        for key, one in pairs.items():
            if isinstance(one, float) and not math.isfinite(one):
                self.fail(f"{key}: {one} is not a finite number", param, ctx)
        return pairs

    def _pair(self, text: str) -> dict[str, object]:
        key, value = parse_key_value(text)
        return {key: self.parse(value)}


class _Listed(click.ParamType[tuple[object, ...]]):
    """Several elements, separated by commas."""

    name = "list"

    def __init__(self, element: click.ParamType[object], *, may_be_none: bool) -> None:
        self.element = element
        self.may_be_none = may_be_none

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[object, ...]:
        if self.may_be_none and value == NONE:
            return ()
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]
        return tuple(self.element.convert(part, param, ctx) for part in parts)


def _click_options(cls: type, *, optional: bool) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Arguments of :func:`click.option` for every option of a dataclass and, hidden, its former spellings."""
    for member in option_members(cls):
        if isinstance(member, OptionGroup):
            yield from _click_options(member.cls, optional=optional or member.optional)
            continue
        option = member.option
        flags = f"{member.flag}/--no-{member.flag[2:]}" if member.default is True else member.flag
        former = [([flag, parameter_name(flag)], True) for flag in option.former]
        required = member.required and not optional and not former
        for declarations, hidden in [([flags, member.parameter], False), *former]:
            yield declarations, {"source": member, "required": required, "former": hidden}


def _click_type(kind: object, option: Option) -> click.ParamType[Any]:
    if kind is Mapping:
        return _Pairs(option.parse or str)
    if option.parse is not None:
        element: click.ParamType[Any] = ParsedText(option.parse)
    elif get_origin(kind) is Literal:
        element = click.Choice(get_args(kind))
    elif kind is Path:
        exists, is_file = option.path.startswith("existing"), option.path.endswith("file")
        element = click.Path(exists=exists, file_okay=option.path != "folder", dir_okay=not is_file, path_type=Path)
    elif kind in {int, float}:
        element = _number(int if kind is int else float, option)
    elif kind is str:
        element = click.STRING
    else:
        raise TypeError(f"no command-line type for {kind}: give the option a parse function")
    return _Listed(element, may_be_none=option.may_be_none) if option.commas else element


def _number(kind: type[int] | type[float], option: Option) -> click.ParamType[Any]:
    low, high = _either(option.minimum, option.above), _either(option.maximum, option.below)
    open_low, open_high = option.above is not None, option.below is not None
    if kind is float:
        number = _Number(low, high, min_open=open_low, max_open=open_high)
        number.may_be_infinite = option.may_be_infinite
        return number
    if low is None and high is None:
        return click.INT
    return click.IntRange(low, high, min_open=open_low, max_open=open_high)  # type: ignore[arg-type]


def _either(closed: float | None, opened: float | None) -> float | None:
    return opened if closed is None else closed


def _given_as(option: OptionField, ctx: click.Context) -> str | None:
    """The parameter that holds the value the user gave: the flag, or a former spelling of it; None if the default holds."""
    names = [option.parameter, *map(parameter_name, option.option.former)]
    sources = {name: ctx.get_parameter_source(name) for name in names}
    given = {name: source for name, source in sources.items() if source not in {None, ParameterSource.DEFAULT}}
    if not given:
        return None
    return min(given, key=lambda name: cast(ParameterSource, given[name]))  # in the order of declaration among equals


def _collected(option: OptionField, value: object) -> object:
    """The value of the field from that of the Click parameter: lists and mappings that were given in several pieces are joined."""
    if not option.repeatable:
        return value
    assert isinstance(value, tuple)
    if option.kind is Mapping:
        keys = [key for part in value for key in part]
        if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise click.UsageError(f"{option.flag} gives {twice[0]} twice")
        return {key: one for part in value for key, one in part.items()}
    return tuple(dict.fromkeys(one for part in value for one in part)) if option.option.commas else value


def _refuse_incomplete(group: OptionGroup, ctx: click.Context) -> None:
    """Refuse options that have no effect. A recipe may hold values ready for those that have a default."""
    for option in option_fields(group.cls):
        given = _given_as(option, ctx)
        if given is None:
            continue
        if option.default in (None, {}) or ctx.get_parameter_source(given) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.flag} goes with {group.key.flag}")
