"""One connection to a Triton server, over gRPC or HTTP: deadlines, further tries, and what went wrong in our own words."""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc
import numpy as np
from tritonclient.utils import InferenceServerException

from serving.errors import RequestError
from serving.options import ServerAddress, WireProtocol

DEFAULT_URLS = {"grpc": ServerAddress().grpc_url, "http": ServerAddress().base_url.removeprefix("http://")}
HTTP_STATUSES = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND", "503": "UNAVAILABLE", "504": "DEADLINE_EXCEEDED"}
FIRST_PAUSE = 0.1


class Connection:
    """A connection to one server; made when the first request goes out.

    Args:
        url: ``host:port`` of the protocol; this machine's default port where None.
        protocol: ``grpc`` or ``http``.
        concurrency: connections that HTTP may open; gRPC needs one.
        timeout: seconds one request may take, further tries included.
        retries: further tries of a request that the server was not there to take (UNAVAILABLE), and of no other.
        ssl: with TLS; the server's certificate is verified.
    """

    def __init__(
        self, url: str | None, *, protocol: WireProtocol, concurrency: int, timeout: float, retries: int, ssl: bool
    ) -> None:
        self._url = url or DEFAULT_URLS[protocol]
        self._protocol = protocol
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._ssl = ssl
        self._client: Any = None
        self._closed = False

    async def model_config(self, model: str) -> dict[str, Any]:
        """Triton's configuration of ``model``.

        Raises:
            RequestError: no server there, or no such model.
            RuntimeError: the connection was closed.
        """
        options = {"as_json": True} if self._protocol == "grpc" else {}
        answer = await self._resilient(lambda: self._open().get_model_config(model, **options))
        config: dict[str, Any] = answer.get("config", answer)
        return config

    async def infer(self, model: str, inputs: Mapping[str, Sequence[bytes]], options: Mapping[str, Any]) -> Any:
        """Ask ``model``.

        Args:
            inputs: rows of each BYTES tensor by its name.
            options: request parameters.

        Returns:
            Triton's result; ``as_numpy(name)`` gives a tensor.

        Raises:
            RequestError: the server refused the request, is not there, or did not answer in time.
            RuntimeError: the connection was closed.
        """
        tensors = [self._tensor(name, rows) for name, rows in inputs.items()]
        return await self._resilient(lambda: self._open().infer(model, tensors, parameters=options or None))

    async def close(self) -> None:
        """Close it, for good."""
        self._closed = True
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _open(self) -> Any:
        if self._closed:
            raise closed_error(self._url)
        if self._client is None:
            _check_url(self._url)
            self._client = self._grpc_client() if self._protocol == "grpc" else self._http_client()
        return self._client

    def _grpc_client(self) -> Any:
        from tritonclient.grpc.aio import InferenceServerClient

        return InferenceServerClient(self._url, ssl=self._ssl)

    def _http_client(self) -> Any:
        from tritonclient.http.aio import InferenceServerClient

        return InferenceServerClient(
            self._url,
            conn_limit=self._concurrency,
            conn_timeout=self._timeout,
            ssl=self._ssl,
            ssl_context=tls.create_default_context() if self._ssl else None,  # without one, no certificate would be verified
        )

    def _tensor(self, name: str, rows: Sequence[bytes]) -> Any:
        if self._protocol == "grpc":
            from tritonclient.grpc import InferInput
        else:
            from tritonclient.http import InferInput
        array = np.array(rows, dtype=np.object_)[:, None]
        tensor = InferInput(name, list(array.shape), "BYTES")
        tensor.set_data_from_numpy(array)
        return tensor

    async def _resilient(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Await ``call()`` within the deadline; try again, after growing pauses, while nobody is there to take it."""
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
            raise self._late() from None
        raise AssertionError("unreachable: the last try returns or raises")

    def _failure(self, error: Exception) -> RequestError:
        """``error`` in our words. Over HTTP, UNAVAILABLE is only what surely kept the request from being taken."""
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
                return self._late()
            case aiohttp.ClientSSLError():
                return self._no_tls(str(error))
            case aiohttp.ClientConnectorError() | aiohttp.ClientConnectionResetError():
                return self._unavailable()
            case aiohttp.InvalidURL():
                return _bad_url(self._url)
            case aiohttp.ClientResponseError():
                hint = "is it the HTTP port (8000 unless told otherwise), and not another?"
                return RequestError(f"{self._url} does not answer as Triton does: {error.message}", status="UNKNOWN", hint=hint)
        found = str(error) or type(error).__name__
        return RequestError(
            f"{self._url} ended the connection before it had answered: {found}",
            status="UNKNOWN",
            hint="whether it took the request is not known; the server's log may tell why",
        )

    def _no_tls(self, found: str) -> RequestError:
        return RequestError(
            f"no TLS connection to {self._url}: {found}",
            status="FAILED_PRECONDITION",
            hint="the server must speak TLS, with a certificate that this machine trusts",
        )

    def _late(self) -> RequestError:
        return RequestError(
            f"{self._url} did not answer within {self._timeout:g} s", status="DEADLINE_EXCEEDED", hint="raise the timeout"
        )

    def _unavailable(self) -> RequestError:
        return RequestError(
            f"no Triton server answers {self._protocol} at {self._url}",
            status="UNAVAILABLE",
            hint="start one with: tritonize serve",
        )


def closed_error(what: str) -> RuntimeError:
    """What is raised where a client is used after its ``close()``."""
    return RuntimeError(f"the client of {what} is closed: make another one")


def _check_url(url: str) -> None:
    try:
        wrong = "://" in url or any(map(str.isspace, url)) or urlsplit(f"//{url}").port == 0
    except ValueError:  # no number, or none that is a port
        wrong = True
    if wrong:
        raise _bad_url(url)


def _bad_url(url: str) -> RequestError:
    return RequestError(f"{url!r} is no host:port", status="INVALID_ARGUMENT", hint="for example 127.0.0.1:8001, without http://")
