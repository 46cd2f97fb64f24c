"""tritonclient's HTTP client, whose errors keep the whole answer of the server or of a proxy in front of it."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import quote

import aiohttp
from tritonclient.http.aio import InferenceServerClient

from serving.failures import HttpAnswerError
from serving.generation_request import TextRequest
from serving.request_context import REQUEST_ID_HEADER

LARGE_BYTES = 2**20
"""Size of a body above which aiohttp warns."""


class HttpTritonClient(InferenceServerClient):  # type: ignore[misc]
    """tritonclient's HTTP client. tritonclient itself drops the headers of an error, and cannot read a body that is not JSON."""

    async def _get(self, *request: Any, **named: Any) -> aiohttp.ClientResponse:
        return await _checked(await super()._get(*request, **named))

    async def _post(self, request_uri: str, request_body: bytes | str, *more: Any, **named: Any) -> aiohttp.ClientResponse:
        body = request_body.encode() if isinstance(request_body, str) else request_body
        # aiohttp warns about large bodies that it is not given as a file
        return await _checked(
            await super()._post(request_uri, io.BytesIO(body) if len(body) >= LARGE_BYTES else body, *more, **named)
        )

    async def post_generation(self, request: TextRequest, headers: dict[str, str] | None) -> aiohttp.ClientResponse:
        """Send a request to a model that generates text. The response has no time limit of its own: it may be a stream.

        Raises:
            HttpAnswerError: Its status is that of an error.
        """
        kind = "generate_stream" if request.stream else "generate"
        url = f"{self._url}/v2/models/{quote(request.model)}/{kind}"
        named = {"content-type": "application/json", **(headers or {})}
        body = io.BytesIO(request.as_json())
        return await _checked(await self._stub.post(url, data=body, headers=named, timeout=aiohttp.ClientTimeout(total=None)))


async def _checked(response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
    """Return the response.

    Raises:
        HttpAnswerError: Its status is that of an error.
    """
    if response.status < 400:
        return response
    body = (await response.read()).decode(errors="replace").removeprefix("data: ")  # of an event of a stream
    retry_after, request_id = (response.headers.get(name) for name in ("Retry-After", REQUEST_ID_HEADER))
    raise HttpAnswerError(response.status, body or response.reason or "", retry_after, request_id)
