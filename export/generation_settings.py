"""Options of generation that a user chooses for export: the defaults of the served model."""

from __future__ import annotations

from serving.records import parse_json
from serving.runtime.generation.generation_options import JSON_OPTIONS, OPTIONS, check_option
from serving.runtime.generation.library_defaults import LIBRARY_DEFAULTS, WITHOUT_EFFECT
from serving.runtime.generation.option_lists import STOP_STRINGS, parsed_parameters
from serving.runtime.tasks._generation import TOKENS
from serving.runtime.types import JsonValue

OF_THE_SERVER = ("seed", "include_stop_strings")
"""Options of a request that ``GenerationConfig`` does not have."""
LIMITS = {"max_new_tokens": "max_length", "min_new_tokens": "min_length"}
"""Limits of the new tokens, which come first in ``generate``, and those of all tokens. A chosen one replaces the other."""


def is_generation_setting(name: str) -> bool:
    """Return whether a setting is an option of generation, by its name in ``transformers``."""
    return (name in LIBRARY_DEFAULTS or name in OF_THE_SERVER) and name not in (*WITHOUT_EFFECT, *TOKENS)


def generation_setting(name: str, value: object) -> JsonValue:
    """Return the value of an option of generation, checked as that of a request.

    Args:
        name: Its name.
        value: Its value, or a string to be parsed. Lists and ``null`` are JSON.

    Raises:
        ValueError: The option is not supported, or not with this value.
    """
    parsed = _parsed(name, value) if isinstance(value, str) else value
    check_option(name, parsed)  # type: ignore[arg-type]
    return parsed  # type: ignore[return-value]


def _parsed(name: str, text: str) -> JsonValue:
    found = parsed_parameters({name: text})[name]
    if not isinstance(found, str) or name in STOP_STRINGS:
        return found
    if name in OPTIONS and name not in JSON_OPTIONS:
        return OPTIONS[name].parse(found)
    try:
        value: JsonValue = parse_json(found)
    except ValueError:
        return found
    return value
