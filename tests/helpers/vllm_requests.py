"""What the clients of Triton's vLLM backend send: NVIDIA's OpenAI front end, and the sample client of the backend."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import numpy as np

SHARED: dict[str, Any] = {"frequency_penalty": 0, "ignore_eos": False, "n": 1, "presence_penalty": 0, "top_p": 1, "max_tokens": 16}
FRONT_END: dict[str, dict[str, Any]] = {
    "chat of 25.08": SHARED | {"temperature": 0.7, "logprobs": False},
    "completion of 25.08": SHARED | {"temperature": 1, "best_of": 1},
    "chat of 26.06": SHARED | {"temperature": 0.7},
    "completion of 26.06": SHARED | {"temperature": 1},
}
"""Sampling parameters of the OpenAI front end for a request without options, by its endpoint and release."""
SAMPLE_CLIENT = {"temperature": "0.1", "top_p": "0.95", "max_tokens": "10"}
"""Sampling parameters of the sample client, which also sends them as parameters of the request."""


def front_end_inputs(kind: str, prompt: str, *, stream: bool, **options: Any) -> dict[str, Any]:
    """The inputs of the OpenAI front end.

    Args:
        kind: One of :data:`FRONT_END`.
        prompt: The text; of a chat, what the front end's chat template made of the messages.
        stream: Whether its client wants a stream.
        options: Options that its client gave.
    """
    inputs: dict[str, Any] = {"return_logprobs": False} if kind.endswith("26.06") else {}
    inputs |= {"text_input": prompt, "stream": stream, "exclude_input_in_output": True}
    inputs["sampling_parameters"] = json.dumps(FRONT_END[kind] | options)
    return inputs | {"return_num_input_tokens": True, "return_num_output_tokens": True}


def sample_client_inputs(prompt: str, *, stream: bool) -> dict[str, Any]:
    """The inputs of the sample client."""
    return {
        "text_input": prompt,
        "stream": stream,
        "sampling_parameters": json.dumps(SAMPLE_CLIENT),
        "exclude_input_in_output": True,
    }


def ask_grpc(url: str, model: str, inputs: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """The answers to one request in a stream of its own: their tensors as lists.

    Args:
        url: Host and port.
        model: The model.
        inputs: Values of inputs of shape ``[1]``.
        more: Further fields of the request, such as ``parameters``.

    Raises:
        InferenceServerException: The request is refused.
    """
    return asyncio.run(_answers(url, {"model_name": model, "inputs": [_tensor(*one) for one in inputs.items()], **more}))


def _tensor(name: str, value: bool | str) -> Any:
    from tritonclient.grpc import InferInput

    is_flag = isinstance(value, bool)
    found = InferInput(name, [1], "BOOL" if is_flag else "BYTES")
    found.set_data_from_numpy(np.array([value if isinstance(value, bool) else value.encode()], np.bool_ if is_flag else np.object_))
    return found


async def _answers(url: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    from tritonclient.grpc.aio import InferenceServerClient

    async def requests() -> Any:
        yield request

    found = []
    async with InferenceServerClient(url) as client:
        async for result, error in client.stream_infer(requests()):
            if error is not None:
                raise error
            names = [output.name for output in result.get_response().outputs]
            found.append({name: result.as_numpy(name).tolist() for name in names})
    return found


def ask_http(url: str, model: str, inputs: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """The answers of ``/generate``, or of ``/generate_stream`` for a stream; ``{"error"}`` if the request is refused.

    Args:
        url: Host and port.
        model: The model.
        inputs: Values of inputs.
        more: Further fields of the body, such as ``parameters``.
    """
    path = "generate_stream" if inputs["stream"] else "generate"
    request = urllib.request.Request(f"http://{url}/v2/models/{model}/{path}", json.dumps(inputs | more).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            text = reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode()
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
