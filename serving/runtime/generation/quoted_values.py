"""Numbers, true and false that a request writes as strings, as clients of Triton's vLLM backend do."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..types import JsonValue, Setting
from .generation_options import neutral_values

_WHOLE = re.compile(r"[+-]?[0-9]{1,400}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?")
_BOOLEANS = {"true": True, "false": False}


def unquoted(given: Mapping[str, JsonValue], settings: Mapping[str, Setting]) -> dict[str, JsonValue]:
    """Replace strings by the numbers and booleans that they write, where an option has such a value.

    Args:
        given: Options by name.
        settings: The options that the task has.

    Returns:
        The options. A string that writes no such value stays, for the check of the option to refuse.
    """
    strings = {name: _value(value, _kind(name, settings)) for name, value in given.items() if isinstance(value, str)}
    return {**given, **strings}


def _kind(name: str, settings: Mapping[str, Setting]) -> type:
    if name == "early_stopping":  # its third value is a string
        return bool
    if name in settings:
        return settings[name].kind
    return type(neutral[0]) if (neutral := neutral_values(name)) else str


def _value(text: str, kind: type) -> bool | int | float | str:
    if kind is bool:
        return _BOOLEANS.get(text, text)
    if kind is int and _WHOLE.fullmatch(text):
        return int(text)
    if kind is float and _DECIMAL.fullmatch(text):
        return float(text)
    return text
