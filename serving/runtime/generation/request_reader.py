"""What a client may ask of a generating model in one request: the tensors of Triton's vLLM backend, and options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ..types import JsonValue, Setting
from .generation_options import GenerationOptions, parsed_lists

MESSAGES = "messages"
"""Request parameter: ``text_input`` is a conversation, a list of messages in JSON."""


@dataclass(frozen=True)
class RequestFields:
    """The inputs of one request but its text.

    Attributes:
        stream: Answer with each part of the text as it is generated.
        messages: ``text_input`` is a conversation.
        prepend_input: Put the prompt's text before the answer.
        finish_reason: Answer with the tensor ``finish_reason`` too.
        num_output_tokens: Answer with the tensor ``num_output_tokens`` too.
        options: How to generate.
    """

    stream: bool
    messages: bool
    prepend_input: bool
    finish_reason: bool
    num_output_tokens: bool
    options: GenerationOptions


def read_fields(
    flags: Mapping[str, bool], sampling_parameters: bytes, parameters: str, defaults: GenerationOptions, *, vocab_size: int
) -> RequestFields:
    """Read a request.

    Args:
        flags: Values of the boolean inputs that the request has, by their names in the vLLM backend.
        sampling_parameters: Options in JSON; empty if the request has none.
        parameters: The parameters of the Triton request, in JSON; empty if it has none.
        defaults: Options of the model.
        vocab_size: Tokens of the model.

    Raises:
        ValueError: Something is wrong; the message names it.
    """
    given = _json_object("sampling_parameters", sampling_parameters)
    beside = parsed_lists(_json_object("parameters", parameters))
    messages = bool(Setting(bool).check(MESSAGES, beside.pop(MESSAGES, False)))
    if twice := given.keys() & beside.keys():
        raise ValueError(f"option {min(twice)} is given twice: in sampling_parameters and as a parameter of the request")
    options = defaults.with_parameters({**given, **beside}, vocab_size=vocab_size)
    stream = flags.get("stream", False)
    prepend = not flags.get("exclude_input_in_output", stream or messages)
    if prepend and (stream or messages):
        why = "stream" if stream else MESSAGES
        raise ValueError(f"exclude_input_in_output cannot be false where {why} is true")
    if stream and options.num_return_sequences > 1:
        raise ValueError("option num_return_sequences of more than 1 is not supported with stream")
    if stream and options.num_beams > 1:
        raise ValueError("option num_beams of more than 1 is not supported with stream: beams have one answer at the end")
    return RequestFields(
        stream=stream,
        messages=messages,
        prepend_input=prepend,
        finish_reason=flags.get("return_finish_reason", False),
        num_output_tokens=flags.get("return_num_output_tokens", False),
        options=options,
    )


def _json_object(name: str, text: str | bytes) -> dict[str, JsonValue]:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 are a ValueError too
        raise ValueError(f"{name} is not JSON: {error}"[:300]) from None
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object with options by name, not {found!r:.80}")
    return found
