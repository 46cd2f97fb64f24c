"""The option ``generation_config`` of a pipeline call: the options that it stands for. The client reads it."""

from __future__ import annotations

from collections.abc import Mapping

from ..generation.library_defaults import LIBRARY_DEFAULTS, METADATA
from ..generation.option_names import OF_VLLM, names_of_vllm, overridden, require_one_name
from ..types import OptionTypeError, shown

GENERATION_CONFIG = "generation_config"


def chosen_config(defaults: Mapping[str, object], given: Mapping[str, object]) -> object:
    """Return the generation config of a call, or else that of the client; None: neither has one."""
    own = given.get(GENERATION_CONFIG)
    return defaults.get(GENERATION_CONFIG) if own is None else own


def config_entries(config: object) -> dict[str, object]:
    """Return the entries of a generation config that are not the library's defaults.

    Args:
        config: A ``transformers.GenerationConfig``, or a mapping of its attributes.

    Raises:
        OptionTypeError: It is something else.
        ValueError: An entry has both of its names, or is a config itself.
    """
    entries = config.to_diff_dict() if hasattr(config, "to_diff_dict") else config
    if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
        raise OptionTypeError(f"option {GENERATION_CONFIG} must be a GenerationConfig or an object of options, not {shown(config)}")
    if entries.get(GENERATION_CONFIG) is not None:
        raise ValueError(f"option {GENERATION_CONFIG} cannot hold another {GENERATION_CONFIG}: give one with the entries of both")
    require_one_name(entries)
    return {name: value for name, value in entries.items() if name not in METADATA and not _is_default(name, value)}


def vllm_entries(config: object) -> dict[str, object]:
    """Return the entries of a generation config that have a name of vLLM.

    Raises:
        ValueError: As for :func:`config_entries`.
    """
    entries = config_entries(config)
    return {alias: entries[alias] for alias in names_of_vllm(entries).values()}


def config_options(
    config: object, given: Mapping[str, object], *, served: Mapping[str, object], model: Mapping[str, object]
) -> dict[str, object]:
    """Return the options of a call with those that its generation config stands for, but not what the server does anyway.

    As in ``generate``, the config takes the place of the pipeline's: an entry with the library's default has the value of the
    checkpoint's ``generation_config.json``, and the pipeline's own defaults do not hold.

    Args:
        config: A ``transformers.GenerationConfig``, or a mapping of its attributes.
        given: The other options of the call, which win over it, and :func:`vllm_entries`.
        served: What the server does without options, where that is not the library's default.
        model: The checkpoint's own values, where they are not the library's defaults.

    Raises:
        OptionTypeError: It is something else.
    """
    wanted = {**LIBRARY_DEFAULTS, **model, **{name: value for name, value in config_entries(config).items() if name not in OF_VLLM}}
    usual = {**LIBRARY_DEFAULTS, **served}
    found = {name: value for name, value in wanted.items() if name not in usual or value != usual[name]}
    of_library = {**given, **{name: given[alias] for name, alias in names_of_vllm(given).items()}}
    if of_library.get("max_new_tokens", wanted["max_new_tokens"]) is not None:
        found.pop("max_length", None)
    elif given.get("max_length") is None and "max_new_tokens" not in of_library and _is_default("max_length", wanted["max_length"]):
        found.pop("max_length", None)
        found["max_new_tokens"] = LIBRARY_DEFAULTS["max_length"]  # as in generate, this default does not count the prompt
    return overridden(found, given)


def _is_default(name: str, value: object) -> bool:
    return name in LIBRARY_DEFAULTS and type(value) is type(LIBRARY_DEFAULTS[name]) and value == LIBRARY_DEFAULTS[name]
