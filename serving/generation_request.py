"""A request to a model that generates text, in the form of either protocol. The tensors are those of the vLLM backend."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from serving.request_context import current_request
from serving.runtime.generation.generation_options import OPTIONS
from serving.runtime.generation.option_lists import parsed_parameters
from serving.runtime.generation.request_reader import TIMEOUT
from serving.runtime.types import JsonValue

TEXT_INPUT = "text_input"
LATE_SECONDS = 1.0
"""How much later than its client a server gives up: the client then has its own error."""


def server_timeout(seconds: float) -> int | None:
    """Return the microseconds after which a server gives up a request that its client waits for ``seconds``; None: never."""
    return math.ceil((max(seconds, 0) + LATE_SECONDS) * 1e6) if math.isfinite(seconds) else None


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """One text, or one chat, and how it is answered.

    Attributes:
        model: The name of the model.
        text: The text, or the messages as JSON, in UTF-8.
        options: Options of ``generate``, by name.
        parameters: Other parameters of the request.
        stream: Whether the text comes in pieces.
        keeps_input: Whether the text and the tokens of the input stand in front of those of the answer.
    """

    model: str
    text: bytes
    options: Mapping[str, JsonValue]
    parameters: Mapping[str, JsonValue]
    stream: bool = False
    keeps_input: bool = False

    @classmethod
    def of(cls, model: str, texts: Sequence[bytes], parameters: Mapping[str, Any], *, keeps_input: bool = False) -> Self:
        """Sort the parameters of a call: a Triton request parameter cannot be a list, so options travel in a tensor.

        Args:
            model: The name of the model.
            texts: One text.
            parameters: What :meth:`~serving.runtime.tasks.base.ServedTask.sanitize_parameters` gave.
            keeps_input: See the attribute.
        """
        (text,) = texts
        options = parsed_parameters({name: value for name, value in parameters.items() if name in OPTIONS})
        others = {name: value for name, value in parameters.items() if name not in OPTIONS}
        return cls(model=model, text=text, options=options, parameters=others, keeps_input=keeps_input)

    def streamed(self) -> Self:
        """Return the request for a stream of pieces."""
        return replace(self, stream=True, keeps_input=False)

    def within(self, seconds: float) -> Self:
        """Return the request with its ``timeout``, for ``/generate``: Triton does not notice that a client of it has left.

        Args:
            seconds: Time that the client waits for the whole answer; ``math.inf``: no limit.
        """
        timeout = server_timeout(seconds)
        return self if timeout is None else replace(self, parameters={**self.parameters, TIMEOUT: timeout})

    @property
    def flags(self) -> dict[str, bool]:
        """Return the inputs that are BOOL ``[1]``."""
        counts = {"return_finish_reason": True, "return_num_output_tokens": True}
        return {"stream": self.stream, "exclude_input_in_output": not self.keeps_input, **counts}

    def as_json(self) -> bytes:
        """Return the body for ``/generate`` and ``/generate_stream``."""
        body: dict[str, object] = {TEXT_INPUT: self.text.decode(), **self.flags}
        if self.options:
            body["sampling_parameters"] = json.dumps(self.options)
        if self.parameters:
            body["parameters"] = dict(self.parameters)
        return json.dumps(body).encode()

    def for_grpc(self) -> dict[str, object]:
        """Return what ``tritonclient.grpc.aio`` takes from the iterator of ``stream_infer``."""
        from tritonclient.grpc import InferInput

        def tensor(name: str, dtype: str, value: bytes | bool) -> object:
            found = InferInput(name, [1], dtype)
            found.set_data_from_numpy(np.array([value], dtype=np.object_ if dtype == "BYTES" else np.bool_))
            return found

        inputs = [tensor(TEXT_INPUT, "BYTES", self.text), *(tensor(name, "BOOL", value) for name, value in self.flags.items())]
        if self.options:
            inputs.append(tensor("sampling_parameters", "BYTES", json.dumps(self.options).encode()))
        request_id = current_request().request_id or ""
        return {"model_name": self.model, "inputs": inputs, "parameters": dict(self.parameters), "request_id": request_id}
