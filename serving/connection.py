"""One connection to a Triton server over gRPC or HTTP, with time limits, retries and clear errors."""

from __future__ import annotations

import asyncio
import math
import ssl as tls
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import aiohttp
import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from serving.errors import RequestError
from serving.options import ServerAddress, WireProtocol

DEFAULT_URLS = {"grpc": ServerAddress().grpc_url, "http": ServerAddress().base_url.removeprefix("http://")}
HTTP_STATUSES = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND", "503": "UNAVAILABLE", "504": "DEADLINE_EXCEEDED"}
FIRST_PAUSE = 0.1
"""Pause before the first retry, in seconds. It doubles with every further retry."""
T = TypeVar("T")


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

    async def get_model_config(self, model_name: str, **options: object) -> dict[str, Any]:
        """Return the model's configuration as JSON."""
        ...

    async def infer(self, model_name: str, inputs: Sequence[object], *, parameters: Mapping[str, object] | None) -> InferResult:
        """Send one request."""
        ...

    async def close(self) -> None:
        """Close the client."""
        ...


class Connection:
    """A connection to one server. It opens with the first request."""

    def __init__(
        self, url: str | None, *, protocol: WireProtocol, concurrency: int, timeout: float, retries: int, ssl: bool
    ) -> None:
        """Create the connection without opening it.

        Args:
            url: ``host:port`` of the server for this protocol. None means the default port on this machine.
            protocol: ``grpc`` or ``http``.
            concurrency: Number of connections that HTTP may open. gRPC needs only one.
            timeout: Time limit of one request in seconds, retries included.
            retries: How often a request is repeated after UNAVAILABLE. Other errors are never retried.
            ssl: Use TLS. The server's certificate is verified.
        """
        self._url = url or DEFAULT_URLS[protocol]
        self._protocol = protocol
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._ssl = ssl
        self._client: InferClient | None = None
        self._closed = False

    async def model_config(self, model: str) -> dict[str, Any]:
        """Return Triton's configuration of ``model``, as the JSON form of ``ModelConfig``.

        Raises:
            RequestError: There is no server, or no such model.
            RuntimeError: The connection is closed.
        """
        options = {"as_json": True} if self._protocol == "grpc" else {}
        answer = await self._with_retries(lambda: self._open().get_model_config(model, **options))
        config: dict[str, Any] = answer.get("config", answer)
        return config

    async def infer(self, model: str, inputs: Mapping[str, Sequence[bytes]], parameters: Mapping[str, object]) -> InferResult:
        """Send one request to ``model``.

        Args:
            model: The name of the model or ensemble.
            inputs: The rows of each BYTES tensor, by the tensor's name.
            parameters: Request parameters.

        Returns:
            The result. Its method ``as_numpy(name)`` returns an output tensor.

        Raises:
            RequestError: The server refused the request, is not there, or did not answer in time.
            RuntimeError: The connection is closed.
        """
        tensors = [self._tensor(name, rows) for name, rows in inputs.items()]
        return await self._with_retries(lambda: self._open().infer(model, tensors, parameters=parameters or None))

    async def close(self) -> None:
        """Close the connection. It cannot be used afterwards."""
        self._closed = True
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _open(self) -> InferClient:
        if self._closed:
            raise closed_error(self._url)
        if self._client is None:
            _check_url(self._url)
            self._client = self._grpc_client() if self._protocol == "grpc" else self._http_client()
        return self._client

    def _grpc_client(self) -> InferClient:
        from tritonclient.grpc.aio import InferenceServerClient

        client: InferClient = InferenceServerClient(self._url, ssl=self._ssl)
        return client

    def _http_client(self) -> InferClient:
        from tritonclient.http.aio import InferenceServerClient

        client: InferClient = InferenceServerClient(
            self._url,
            conn_limit=self._concurrency,
            conn_timeout=self._timeout if math.isfinite(self._timeout) else None,  # None: no limit
            ssl=self._ssl,
            ssl_context=tls.create_default_context() if self._ssl else None,  # without it, tritonclient verifies no certificate
        )
        return client

    def _tensor(self, name: str, rows: Sequence[bytes]) -> object:
        if self._protocol == "grpc":
            from tritonclient.grpc import InferInput
        else:
            from tritonclient.http import InferInput
        array = np.array(rows, dtype=np.object_)[:, None]
        tensor = InferInput(name, list(array.shape), "BYTES")
        tensor.set_data_from_numpy(array)
        return tensor

    async def _with_retries(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await ``call()`` within the time limit. Retry it after UNAVAILABLE, with growing pauses."""
        pause = FIRST_PAUSE
        try:
            async with asyncio.timeout(self._timeout):
                for attempt in range(self._retries + 1):
                    try:
                        return await call()
                    except (InferenceServerException, aiohttp.ClientError, grpc.aio.AioRpcError) as error:
                        failure = self._failure(error)
                        if failure.status != "UNAVAILABLE" or attempt == self._retries:
                            raise failure from error
                    await asyncio.sleep(pause)
                    pause *= 2
        except TimeoutError:
            raise self._timed_out() from None
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _failure(self, error: Exception) -> RequestError:
        """Translate ``error``. Over HTTP, UNAVAILABLE means that the server certainly did not receive the request."""
        if isinstance(error, aiohttp.ClientError):
            return self._http_failure(error)
        if isinstance(error, InferenceServerException):
            status = str(error.status()).removeprefix("StatusCode.")
            status = HTTP_STATUSES.get(status, "INTERNAL" if status.isdigit() else status)
            message = error.message()
        else:
            assert isinstance(error, grpc.aio.AioRpcError)
            status, message = error.code().name, error.details() or ""
        if status == "UNAVAILABLE" and "SSL_ERROR" in message:
            return self._no_tls(message)
        if status == "UNAVAILABLE" and "connect" in message:
            return self._unavailable()
        return RequestError(message, status=status)

    def _http_failure(self, error: aiohttp.ClientError) -> RequestError:
        match error:
            case TimeoutError():
                return self._timed_out()
            case aiohttp.ClientSSLError():
                return self._no_tls(str(error))
            case aiohttp.ClientConnectorError() | aiohttp.ClientConnectionResetError():
                return self._unavailable()
            case aiohttp.InvalidURL():
                return _bad_url(self._url)
            case aiohttp.ClientResponseError():
                hint = "check the port: HTTP is 8000 by default"
                return RequestError(
                    f"the server at {self._url} does not answer like Triton: {error.message}", status="UNKNOWN", hint=hint
                )
        found = str(error) or type(error).__name__
        return RequestError(
            f"{self._url} closed the connection before it answered: {found}",
            status="UNKNOWN",
            hint="the server may have processed the request; see its log",
        )

    def _no_tls(self, found: str) -> RequestError:
        return RequestError(
            f"no TLS connection to {self._url}: {found}",
            status="FAILED_PRECONDITION",
            hint="the server must use TLS, with a certificate that this machine trusts",
        )

    def _timed_out(self) -> RequestError:
        return RequestError(
            f"{self._url} did not answer within {self._timeout:g} s", status="DEADLINE_EXCEEDED", hint="raise the timeout"
        )

    def _unavailable(self) -> RequestError:
        return RequestError(
            f"no Triton server answers at {self._url} ({self._protocol})",
            status="UNAVAILABLE",
            hint="start one with: tritonize serve",
        )


def closed_error(what: str) -> RuntimeError:
    """Return the error of a client that is used after its ``close()``."""
    return RuntimeError(f"the client of {what} is closed: create a new one")


def _check_url(url: str) -> None:
    try:
        wrong = "://" in url or any(map(str.isspace, url)) or urlsplit(f"//{url}").port == 0
    except ValueError:  # the port is not a number, or out of range
        wrong = True
    if wrong:
        raise _bad_url(url)


def _bad_url(url: str) -> RequestError:
    return RequestError(
        f"{url!r} is not host:port", status="INVALID_ARGUMENT", hint="write it like 127.0.0.1:8001, without http://"
    )
