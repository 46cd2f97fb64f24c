"""The responses of a model that generates text, as they arrive: over a gRPC stream, or as server-sent events over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Protocol

import aiohttp
import numpy as np
from tritonclient.utils import InferenceServerException

from serving.failures import HttpAnswerError, StreamedError
from serving.generation_request import TextRequest
from serving.request_context import REQUEST_ID_HEADER
from serving.runtime.digest import DIGEST
from serving.runtime.types import Arrays

EVENT = b"data:"
TEXTS = ("text_output", "finish_reason")
NUMBERS = ("num_output_tokens", "token_ids", DIGEST)
"""Tensors of a response, by the type of their elements."""


class Responses(Protocol):
    """The responses to one request."""

    async def read(self) -> Arrays | None:
        """Return the tensors of the next response; None: there are no more.

        Raises:
            StreamedError: The server refused the request, or cannot go on. So do the next ones.
            HttpAnswerError: As above.
            InferenceServerException: The server sent no JSON.
            AioRpcError: As above.
            ClientError: The connection broke.
        """
        ...

    async def close(self) -> None:
        """Cancel the request if it has not ended."""
        ...


class GrpcResponses:
    """Responses over a stream of ``ModelStreamInfer`` of their own: cancelling it cancels the request.

    An error in a stream has no status. Triton 2.51 would give one for the header ``triton_grpc_error``, but can end when it does.
    """

    def __init__(self, client: Any, request: TextRequest, headers: dict[str, str] | None) -> None:
        """Send the request with tritonclient's ``client``."""
        self._responses = client.stream_infer(_once(request), headers=headers)

    async def read(self) -> Arrays | None:
        """Return the next response."""
        try:
            result, error = await anext(self._responses)
        except StopAsyncIteration:
            return None
        if error is not None:
            call = getattr(self._responses, "_grpc_call", None)  # tritonclient hides the call, which alone has the headers
            headers = {} if call is None else dict(await call.initial_metadata() or ())
            raise StreamedError(error.message(), headers.get(REQUEST_ID_HEADER))
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    async def close(self) -> None:
        """Cancel the stream."""
        self._responses.cancel()


async def _once(request: TextRequest) -> AsyncGenerator[dict[str, object], None]:
    yield request.for_grpc()


class HttpResponses:
    """Responses over an HTTP connection of their own: closing it cancels the request."""

    def __init__(self, response: aiohttp.ClientResponse, *, stream: bool) -> None:
        """Read ``response``, which is a stream of events or one JSON object."""
        self._response = response
        self._events = _events(response) if stream else _body(response)

    async def read(self) -> Arrays | None:
        """Return the next response."""
        event = await anext(self._events, None)
        if event is None:
            return None
        try:
            found = json.loads(event)
        except ValueError:
            message = f"the server sent no JSON: {event[:200]!r}"
            raise InferenceServerException(msg=message, status="StatusCode.INTERNAL") from None
        if "error" in found:
            request_id = self._response.headers.get(REQUEST_ID_HEADER)
            raise HttpAnswerError(500, event.decode(errors="replace"), None, request_id)
        return _arrays(found)

    async def close(self) -> None:
        """Close the connection, unless the response was read to its end."""
        self._response.close()


async def _body(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    yield await response.read()


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the data of each server-sent event. Triton writes each on one line, with an empty line behind it."""
    async for line in _lines(response):
        if line.startswith(EVENT):
            yield line.removeprefix(EVENT).strip()


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield lines of any length; aiohttp's own reader refuses long ones."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


def _arrays(found: Mapping[str, Any]) -> Arrays:
    """Convert the JSON of a response to tensors: a tensor of one element is no list there."""
    tensors: Arrays = {}
    for name, value in found.items():
        listed = value if isinstance(value, list) else [value]
        if name in TEXTS:
            tensors[name] = np.array([text.encode() for text in listed], dtype=np.object_)
        elif name in NUMBERS:
            tensors[name] = np.array(listed, dtype=np.int64)
    return tensors
