"""What tritonclient's two asynchronous clients have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import aiohttp
import numpy.typing as npt

from serving.generation_request import TextRequest


class InferResult(Protocol):
    """The result of a request, from tritonclient's gRPC or HTTP module."""

    def as_numpy(self, name: str) -> npt.NDArray[Any]:
        """Return an output tensor by its name."""
        ...

    def get_output(self, name: str) -> object | None:
        """Return the description of an output tensor, or None if the result does not have it."""
        ...


class InferClient(Protocol):
    """The methods that tritonclient's two asynchronous clients have in common."""

    async def get_model_config(self, model_name: str, *, headers: dict[str, str] | None, **options: object) -> dict[str, Any]:
        """Return the model's configuration as JSON."""
        ...

    async def is_server_live(self, *, headers: dict[str, str] | None) -> bool:
        """Return whether the server neither starts nor ends."""
        ...

    async def get_inference_statistics(self, *, headers: dict[str, str] | None, **options: object) -> dict[str, Any]:
        """Return the statistics of all models as JSON."""
        ...

    async def infer(
        self,
        model_name: str,
        inputs: Sequence[object],
        *,
        parameters: Mapping[str, object] | None,
        headers: dict[str, str] | None,
        request_id: str,
        timeout: int | None,
    ) -> InferResult:
        """Send one request, which the server may give up after ``timeout`` microseconds."""
        ...

    async def post_generation(self, request: TextRequest, headers: dict[str, str] | None) -> aiohttp.ClientResponse:
        """Send a request to a model that generates text. HTTP only."""
        ...

    async def close(self) -> None:
        """Close the client."""
        ...
