"""What a client may ask of a generating model in one request: the tensors of Triton's vLLM backend, and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..tasks.text_generation import TextGeneration
from ..types import JsonValue, Setting, parse_client_json, shown, without_request_id
from .generation_options import GenerationOptions
from .quoted_values import unquoted

TIMEOUT = "timeout"
"""Parameter of a request: the microseconds that it may take. Triton itself reads it, but not at ``/generate``."""
NO_LOG_PROBABILITIES = ("return_logprobs", "return_cumulative_logprob")
"""Inputs of the vLLM backend that may be false only."""


@dataclass(frozen=True)
class RequestFields:
    """The inputs of one request but its text.

    Attributes:
        task: The task with the options of the request.
        given: These options by name.
        timeout: Microseconds that the request may take; 0: the parameters do not say it.
        stream: Answer with each part of the text as it is generated.
        prepend_input: Put the prompt before the answer: its text and its tokens.
        finish_reason: Answer with the tensor ``finish_reason`` too.
        num_input_tokens: Answer with the tensor ``num_input_tokens`` too.
        num_output_tokens: Answer with the tensor ``num_output_tokens`` too.
    """

    task: TextGeneration
    given: Mapping[str, JsonValue]
    timeout: int
    stream: bool
    prepend_input: bool
    finish_reason: bool
    num_input_tokens: bool
    num_output_tokens: bool

    @property
    def options(self) -> GenerationOptions:
        """Return how to generate."""
        return self.task.generation_options

    @property
    def marks_prefix(self) -> bool:
        """Return whether the prefix is counted with the tokens that the tokenizer adds to a text, as in the pipeline."""
        return self.given.get("prefix") is not None and bool(self.given.get("add_special_tokens"))


def read_fields(flags: Mapping[str, bool], sampling_parameters: bytes, parameters: str, defaults: TextGeneration) -> RequestFields:
    """Read a request.

    An option may stand in ``sampling_parameters`` and be a parameter of the request as well, if its value is the same.

    Args:
        flags: Values of the boolean inputs that the request has, by their names in the vLLM backend.
        sampling_parameters: Options in JSON; empty if the request has none.
        parameters: The parameters of the Triton request, in JSON; empty if it has none.
        defaults: The task with the model's settings.

    Raises:
        ValueError: Something is wrong; the message names it.
    """
    for name in NO_LOG_PROBABILITIES:
        if flags.get(name):
            raise ValueError(f"{name} cannot be true: this model gives no log probabilities")
    beside = without_request_id(_json_object("parameters", parameters))
    timeout = int(Setting(int, minimum=0).check(TIMEOUT, beside.pop(TIMEOUT, 0)))
    given = _joined(_json_object("sampling_parameters", sampling_parameters), defaults.parsed(beside), defaults.options)
    task = defaults.with_values(given)
    options = task.generation_options
    stream = flags.get("stream", False)
    prepend = not flags.get("exclude_input_in_output", stream or task.messages)
    if prepend and stream:
        raise ValueError("exclude_input_in_output cannot be false where stream is true")
    if stream and options.num_return_sequences > 1:
        name = options.client_name("num_return_sequences")
        raise ValueError(f"option {name} of more than 1 is not supported with stream")
    if stream and options.num_beams > 1:
        raise ValueError("option num_beams of more than 1 is not supported with stream: beams have one answer at the end")
    return RequestFields(
        task=task,
        given=given,
        timeout=timeout,
        stream=stream,
        prepend_input=prepend,
        finish_reason=flags.get("return_finish_reason", False),
        num_input_tokens=flags.get("return_num_input_tokens", False),
        num_output_tokens=flags.get("return_num_output_tokens", False),
    )


def _joined(
    given: Mapping[str, JsonValue], beside: Mapping[str, JsonValue], settings: Mapping[str, Setting]
) -> Mapping[str, JsonValue]:
    """Return the options of ``sampling_parameters`` and those that are parameters of the request.

    Raises:
        ValueError: They differ in one; the message names it.
    """
    given, beside = unquoted(given, settings), unquoted(beside, settings)
    for name in sorted(given.keys() & beside.keys()):
        one, other = given[name], beside[name]
        if one != other or isinstance(one, bool) != isinstance(other, bool):
            raise ValueError(
                f"option {name[:80]} is given twice: it is {shown(one)} in sampling_parameters, "
                f"and {shown(other)} as a parameter of the request"
            )
    return beside | given


def _json_object(name: str, text: str | bytes) -> dict[str, JsonValue]:
    if not text:
        return {}
    found = parse_client_json(name, text)
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object with options by name, not {shown(found)}")
    return found
