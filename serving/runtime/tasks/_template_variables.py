"""Variables that a request gives to the chat template, such as ``enable_thinking`` of Qwen3 and SmolLM3."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite

from ..suggestions import LONGEST
from ..types import JsonValue, OptionTypeError, parse_client_json, shown

TEMPLATE_KWARGS = "chat_template_kwargs"
"""The option, as vLLM calls it."""
ENCODE_KWARGS = "tokenizer_encode_kwargs"
"""Its name in ``TextGenerationPipeline``."""
RESERVED = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "raise_exception",
        "strftime_now",
        "conversation",
        "chat_template",
        "tokenize",
        "tokenizer_kwargs",
        "add_special_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
    }
)
"""Names that are no variables of a template: what the server gives it, and arguments of ``apply_chat_template``."""


def template_variables(value: object, special_tokens: Collection[str], *, name: str = TEMPLATE_KWARGS) -> dict[str, JsonValue]:
    """Return the variables that a request gives to the chat template.

    Args:
        value: An object, or the JSON of one.
        special_tokens: Names of the special tokens, which the template gets too.
        name: The name of the option in the request.

    Raises:
        ValueError: It is no object, a name is no identifier or reserved, or a value is no string, finite number, boolean or null.
    """
    what = f"option {name}"
    found = parse_client_json(what, value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise OptionTypeError(f"{what} must be a JSON object, not {shown(found)}")
    for variable, one in found.items():
        if not isinstance(variable, str) or not variable.isidentifier():
            raise ValueError(f"{what} has a name that is no identifier: {shown(variable)}")
        if variable in RESERVED or variable in special_tokens:
            raise ValueError(f"{what} cannot set {variable[:LONGEST]}, which is no variable of the template")
        if not isinstance(one, str | int | float | None):
            raise OptionTypeError(f"{what}: {variable[:LONGEST]} must be a string, a number, true, false or null, not {shown(one)}")
        if isinstance(one, float) and not isfinite(one):
            raise ValueError(f"{what}: {variable[:LONGEST]} must be finite, not {shown(one)}")
    return dict(found)
