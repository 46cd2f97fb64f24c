"""Options of generation that a user chooses for export: the defaults of the served model."""

from __future__ import annotations

import re
from collections.abc import Collection

from serving.records import parse_json
from serving.runtime.generation.generation_options import JSON_OPTIONS, OPTIONS, check_option
from serving.runtime.generation.library_defaults import LIBRARY_DEFAULTS, WITHOUT_EFFECT
from serving.runtime.generation.option_lists import STOP_STRINGS, parsed_parameters
from serving.runtime.generation.option_names import OF_VLLM
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


def unknown_setting(name: str) -> str:
    """Say that options of generation are settings by their names in ``transformers``, where a setting has another name of one.

    Returns:
        The end of a message; empty: it is no option of generation.
    """
    if name in OF_VLLM:
        return f"options of generation have their names in transformers: give {OF_VLLM[name]}"
    return "" if name not in OPTIONS else "only options of generation that transformers has are settings"


def refused_default_hint(message: str, chosen: Collection[str]) -> str:
    """Return what to do about a default of generation that is not supported.

    Args:
        message: The refusal, which names the option.
        chosen: The names of the settings that the user chose.
    """
    named = re.findall(r"\w+", message)
    if at_fault := [name for name in chosen if name in named]:
        return f"change {' and '.join(f'--setting {name}' for name in at_fault)}"
    return "give export another default, such as --setting do_sample=false, or change its generation_config.json"


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
