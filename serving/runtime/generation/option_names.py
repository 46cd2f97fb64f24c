"""The names of options in a request: those of ``transformers`` and of vLLM, and what None means for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..types import JsonValue, OptionTypeError

T = TypeVar("T")
ALIASES = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "n": "num_return_sequences",
    "include_stop_str_in_output": "include_stop_strings",
}
"""Names of vLLM for options of ``transformers``."""
OF_VLLM = {**ALIASES, "stop": "stop_strings"}
"""The same, with the option whose text ends elsewhere."""
_OFF: dict[str, JsonValue] = {
    "max_new_tokens": None,
    "min_new_tokens": None,
    "min_length": 0,
    "max_time": None,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "seed": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "forced_bos_token_id": None,
    "renormalize_logits": False,
    "eos_token_id": [],
    "forced_eos_token_id": [],
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "stop_strings": [],
}
"""Options that None switches off, as in ``transformers.generate``, and the values of ``GenerationOptions`` without them."""
_NEVER_NONE = ("num_beams", "num_return_sequences", "early_stopping")
"""Options that ``transformers.generate`` refuses if they are None. None leaves all others as they are."""


def canonical(parameters: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Replace aliases, and None by what it means; leave out where that is nothing.

    Raises:
        ValueError: One option is given by two names, or is None and must not be.
    """
    require_one_name(parameters)
    by_vllm = names_of_vllm(parameters)
    found: dict[str, JsonValue] = {}
    for given, value in parameters.items():
        if value is None and given in _NEVER_NONE:
            raise OptionTypeError(f"option {given} must have a value, not null")
        if value is not None:
            found[ALIASES.get(given, given)] = value
        elif given in _OFF and given not in by_vllm:
            found[given] = _OFF[given]
    include = found.pop("include_stop_strings", None)  # after those that set it too
    return found if include is None else found | {"include_stop_strings": include}


def require_one_name(parameters: Mapping[str, object]) -> None:
    """Check that no option is given by both of its names.

    Raises:
        ValueError: One is; the message has both names.
    """
    for name, alias in names_of_vllm(parameters).items():
        if parameters.get(name) is not None:
            raise ValueError(f"options {name} and {alias} are the same: give one")


def overridden(usual: Mapping[str, T], own: Mapping[str, T]) -> dict[str, T]:
    """Return options where those in ``own`` come before the same ones in ``usual``, by whichever of its names each has one."""
    replaced = set(names_of_vllm(own)) | {
        alias for alias, name in OF_VLLM.items() if own.get(name) is not None or _is_off(name, own)
    }
    return {**{name: value for name, value in usual.items() if name not in replaced}, **own}


def _is_off(name: str, options: Mapping[str, object]) -> bool:
    return name in _OFF and name in options


def names_of_vllm(parameters: Mapping[str, object]) -> dict[str, str]:
    """Return the names of vLLM that a request used, by the names of ``transformers``."""
    return {name: alias for alias, name in OF_VLLM.items() if parameters.get(alias) is not None}
