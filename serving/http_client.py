"""tritonclient's HTTP client, whose errors keep the whole answer of the server or of a proxy in front of it."""

from __future__ import annotations

import io
from typing import Any

import aiohttp
from tritonclient.http.aio import InferenceServerClient

from serving.failures import HttpAnswerError

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


async def _checked(response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
    """Return the response.

    Raises:
        HttpAnswerError: Its status is that of an error.
    """
    if response.status < 400:
        return response
    body = (await response.read()).decode(errors="replace")
    raise HttpAnswerError(response.status, body or response.reason or "", response.headers.get("Retry-After"))
