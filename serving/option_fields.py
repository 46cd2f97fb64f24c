"""Command-line options as fields of dataclasses: type, default, help and range of an option stand in one place.

A field whose type is annotated with an :class:`Option` becomes a Click option. A field that is a dataclass contributes the options
of its own fields. All other fields keep their defaults::

    @dataclass(frozen=True, kw_only=True)
    class ServeOptions:
        http_port: Annotated[int, Option("HTTP port.", minimum=1, maximum=65535)] = 8000

:mod:`serving.click_options` makes the Click options and builds the dataclass from their values.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, MISSING, dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
NONE = "none"
"""The value that stands for an empty list where :attr:`Option.may_be_none` is set."""


@dataclass(frozen=True)
class Option:
    """Describes how a field appears on the command line and in recipes.

    Attributes:
        help: Help text in full sentences, or a named function that returns it where the text lists what exists.
        flag: Flag such as ``--text-column``; empty: the name of the field with dashes.
        metavar: Placeholder of the value in help pages.
        default_text: Description of a default that is chosen later, where the field holds None or an empty value. If it is empty,
            no default is shown.
        minimum: Least number allowed.
        maximum: Greatest number allowed.
        above: Number that the value must exceed.
        below: Number that the value must stay under.
        may_be_infinite: Whether a float may be infinite, which stands for no limit. NaN is always refused.
        parse: Function from the string on the command line to the value. It raises ValueError with a message for the user. For a
            tuple it reads one element.
        show: Inverse of ``parse``, which formats the default.
        commas: Whether one value may list several elements of a tuple, separated by commas.
        may_be_none: Whether ``none`` may be given in place of elements.
        path: What must hold for a path: ``file`` and ``folder`` refuse an existing path of the other kind; ``existing`` and
            ``existing-file`` require the path to exist.
        shared: Whether a recipe may set the option outside any section, for every command that has it.
        former: Flags of the option in the previous release. They work, in recipes too, with a warning.
        former_keys: Keys of the option in recipes of the previous release, with underscores, that never were flags. They work in
            recipes, with a warning.
    """

    help: str | Callable[[], str]
    _: KW_ONLY
    flag: str = ""
    metavar: str | None = None
    default_text: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    may_be_infinite: bool = False
    parse: Callable[[str], object] | None = None
    show: Callable[[Any], str] = str
    commas: bool = False
    may_be_none: bool = False
    path: Literal["any", "file", "folder", "existing", "existing-file"] = "any"
    shared: bool = False
    former: tuple[str, ...] = ()
    former_keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OptionField:
    """A dataclass field that is an option.

    Attributes:
        field: The field.
        option: Its description.
        kind: Type of the value, or of one element where the option is repeatable.
        repeatable: Whether the option may be given several times: the field is a tuple or a mapping.
    """

    field: dataclasses.Field[object]
    option: Option
    kind: object
    repeatable: bool

    @property
    def flag(self) -> str:
        """The flag, such as ``--learning-rate``."""
        return self.option.flag or f"--{self.field.name.replace('_', '-')}"

    @property
    def parameter(self) -> str:
        """The name of the Click parameter."""
        return parameter_name(self.flag)

    @property
    def required(self) -> bool:
        """Whether the field has no default."""
        return self.field.default is MISSING and self.field.default_factory is MISSING

    @property
    def default(self) -> object:
        """The default of the field; None if it has none."""
        if self.field.default_factory is not MISSING:
            return self.field.default_factory()
        return None if self.required else self.field.default

    @property
    def default_text(self) -> str | None:
        """The default as help pages show it; None for flags, which are off, and for required options."""
        if self.option.default_text is not None:
            return self.option.default_text or None
        if self.required or self.default is False:
            return None
        if self.kind is bool:
            return self.flag.removeprefix("--")
        if isinstance(self.default, tuple):
            return ",".join(map(self.option.show, self.default)) or NONE
        return NONE if self.default is None else self.option.show(self.default)


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """A dataclass field that is itself a dataclass with options.

    Attributes:
        name: Name of the field.
        cls: The dataclass.
        optional: Whether the field may be None: it is, unless the one required option of the dataclass is given.
    """

    name: str
    cls: type
    optional: bool

    @property
    def key(self) -> OptionField:
        """The required option, without which an optional group is None."""
        (found,) = (member for member in option_members(self.cls) if isinstance(member, OptionField) and member.required)
        return found


@functools.cache
def option_members(cls: type) -> tuple[OptionField | OptionGroup, ...]:
    """List the options of a dataclass and the dataclasses nested in it, in the order of its fields.

    Args:
        cls: A dataclass whose annotations can be resolved at run time.

    Returns:
        Its members; fields that are no options are left out.
    """
    hints = get_type_hints(cls, include_extras=True)
    found = (_member(field, hints[field.name]) for field in dataclasses.fields(cls))
    return tuple(member for member in found if member is not None)


def option_fields(cls: type) -> Iterator[OptionField]:
    """List all options of a dataclass, with those of nested dataclasses.

    Args:
        cls: The dataclass.

    Yields:
        Its options in the order of the fields.
    """
    for member in option_members(cls):
        if isinstance(member, OptionField):
            yield member
        else:
            yield from option_fields(member.cls)


def parameter_name(flag: str) -> str:
    """Name the Click parameter of a flag.

    Args:
        flag: Such as ``--text-column``.

    Returns:
        Such as ``text_column``.
    """
    return flag.removeprefix("--").replace("-", "_")


def _member(field: dataclasses.Field[object], hint: object) -> OptionField | OptionGroup | None:
    if get_origin(hint) is not Annotated:
        inner, optional = _without_none(hint)
        if isinstance(inner, type) and dataclasses.is_dataclass(inner) and any(True for _ in option_fields(inner)):
            return OptionGroup(name=field.name, cls=inner, optional=optional)
        return None
    annotated, *remarks = get_args(hint)
    described = [remark for remark in remarks if isinstance(remark, Option)]
    if not described:
        return None
    kind, _ = _without_none(annotated)
    origin, arguments = get_origin(kind), get_args(kind)
    repeatable = origin is tuple or (isinstance(origin, type) and issubclass(origin, Mapping))
    element = kind if not repeatable else arguments[0] if origin is tuple else Mapping
    return OptionField(field=field, option=described[-1], kind=element, repeatable=repeatable)


def _without_none(hint: object) -> tuple[object, bool]:
    """Split ``X | None`` into ``X`` and True."""
    if get_origin(hint) not in {Union, types.UnionType}:
        return hint, False
    others = [argument for argument in get_args(hint) if argument is not type(None)]
    return (others[0], True) if len(others) == 1 else (hint, False)
