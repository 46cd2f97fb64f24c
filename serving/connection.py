"""One connection to a Triton server over gRPC or HTTP, with time limits, retries and clear errors."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import grpc
import numpy as np
from tritonclient.utils import InferenceServerException

from serving import forks
from serving.access import ClientAccess
from serving.connection_messages import BROKEN, UNREACHABLE
from serving.errors import RequestError
from serving.failures import AttemptFailure, FailureTranslator, HttpAnswerError, Retry, bad_url
from serving.generation_request import server_timeout
from serving.infer_client import InferClient, InferResult
from serving.model_names import callable_models, load_command
from serving.options import ServerAddress, WireProtocol
from serving.request_context import current_request
from serving.retries import RequestRetries
from serving.wrong_protocol import answers_grpc, answers_http, closes_connections, is_grpc_port, is_http_port, may_be_grpc

CHANNEL_ARGUMENTS = (
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 3000),
)
"""Options of the gRPC channel: messages of any size, and a server that was restarted is found within half a second.

gRPC's own limit of the pause between two attempts to connect is two minutes. The last option is the time limit of one attempt; a
fork has to wait for an attempt to end.
"""
BALANCED_URL = re.compile(r"dns://[^/]*/([^/]+)")
"""An address of gRPC whose requests go to all servers of a name in turn. Between the slashes a DNS server may stand."""
BALANCED = (("grpc.lb_policy_name", "round_robin"), ("grpc.dns_min_time_between_resolutions_ms", 5000))
"""Further options of the channel then. gRPC asks again for the addresses when a connection ends, but not more often."""
DEFAULT_URLS = {"grpc": ServerAddress().grpc_url, "http": ServerAddress().base_url.removeprefix("http://")}
CLIENT_ERRORS = (InferenceServerException, HttpAnswerError, aiohttp.ClientError, grpc.aio.AioRpcError)
T = TypeVar("T")


class Connection:
    """A connection to one server. It opens with the first request, and with the first one after a fork of this process again."""

    def __init__(
        self,
        url: str | None,
        *,
        protocol: WireProtocol,
        concurrency: int,
        timeout: float,
        retries: int | None,
        access: ClientAccess | None = None,
    ) -> None:
        """Create the connection without opening it.

        Args:
            url: ``host:port`` of the server for this protocol; for gRPC also ``dns:///host:port``, whose requests go to all
                addresses of the host in turn. None means the default port on this machine.
            protocol: ``grpc`` or ``http``.
            concurrency: Number of connections that HTTP may open. gRPC needs only one.
            timeout: Time limit of one request in seconds, retries included.
            retries: Maximum number of retries of a request; None: as many as the time limit allows, see :mod:`serving.retries`.
            access: API key and TLS. None: the key of the environment variable, and no TLS.
        """
        self._url = url or DEFAULT_URLS[protocol]
        self.protocol = protocol
        self._concurrency = concurrency
        self.timeout = timeout
        self._retries = retries
        self._access = access or ClientAccess()
        self._failures = FailureTranslator(url=self._url, protocol=protocol, has_tls=self._access.tls is not None)
        self._client: InferClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in_flight = 0
        self._interruptions = 0
        self._closed = False
        self._reached = self._answered = False
        forks.register(self)

    async def model_config(self, model: str) -> dict[str, Any]:
        """Return Triton's configuration of ``model``, as the JSON form of ``ModelConfig``.

        Raises:
            RequestError: There is no server, or no such model; the message then lists those that are served.
            RuntimeError: The connection is closed.
        """
        try:
            answer = await self.ask(lambda client: client.get_model_config(model, headers=self.headers, **self._as_json))
        except RequestError as error:
            if error.status != "NOT_FOUND":
                raise
            raise await self._not_served(model, error) from error
        config: dict[str, Any] = answer.get("config", answer)
        return config

    async def model_names(self) -> list[str]:
        """Return the names of the models that the server serves and that clients may call.

        The statistics tell them. Triton's index of its repository would too, but it belongs to an interface that changes models.

        Raises:
            RequestError: There is no server, or it does not tell its statistics.
            RuntimeError: The connection is closed.
        """
        answer = await self.ask(lambda client: client.get_inference_statistics(headers=self.headers, **self._as_json))
        return callable_models(str(model["name"]) for model in answer.get("model_stats", []))

    @property
    def headers(self) -> dict[str, str] | None:
        """The headers of the next request."""
        return {**self._access.headers(self.protocol), **current_request().headers()} or None

    @property
    def _as_json(self) -> dict[str, bool]:
        return {"as_json": True} if self.protocol == "grpc" else {}

    async def _not_served(self, model: str, error: RequestError) -> RequestError:
        """Return the error about a model that does not exist, with the names of those that do."""
        try:
            names = await self.model_names()
        except RequestError as unlisted:
            return RequestError(error.message, status=error.status, hint=f"what it serves is unknown: {unlisted.message}")
        served = ", ".join(names) or "no model"
        hint = f"if it was packaged after the start of the server, load it with: {load_command(model)}"
        message = f"{model} is not served at {self._url}; it serves: {served}"
        return RequestError(message, status=error.status, hint=hint).of_request(error.request_id)

    async def infer(
        self, model: str, inputs: Mapping[str, Sequence[bytes]], parameters: Mapping[str, object], *, is_long: bool = False
    ) -> InferResult:
        """Send one request to ``model``.

        Args:
            model: The name of the model or ensemble.
            inputs: The rows of each BYTES tensor, by the tensor's name.
            parameters: Request parameters.
            is_long: Whether the answer takes long. The server is then told over HTTP how long the client waits: Triton does not
                notice that a client of HTTP has left.

        Returns:
            The result. Its method ``as_numpy(name)`` returns an output tensor.

        Raises:
            RequestError: The server refused the request, is not there, or did not answer in time.
            RuntimeError: The connection is closed.
        """
        tensors = [self._tensor(name, rows) for name, rows in inputs.items()]
        end = time.monotonic() + self.timeout if is_long and self.protocol == "http" else math.inf

        def send(client: InferClient) -> Awaitable[InferResult]:
            return client.infer(
                model,
                tensors,
                parameters=parameters or None,
                headers=self.headers,
                request_id=current_request().request_id or "",
                timeout=server_timeout(end - time.monotonic()),
            )

        return await self.ask(send)

    async def close(self) -> None:
        """Close the connection. It cannot be used afterwards."""
        self._closed = True
        await self._disconnect()

    def before_fork(self) -> concurrent.futures.Future[None] | None:
        """Close a gRPC channel; what waits for an answer then asks again. See :meth:`serving.forks.ForkMember.before_fork`."""
        if self._client is None or self._loop is None or self.protocol == "http":
            return None
        if self._loop.is_running() and asyncio._get_running_loop() is not self._loop:
            return asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop)
        if self._in_flight > 0:
            return None  # the loop cannot run now, and those who wait for an answer hold the channel
        closed: concurrent.futures.Future[None] = concurrent.futures.Future()
        with contextlib.suppress(StopIteration):
            self._disconnect().send(None)
        closed.set_result(None)
        return closed

    def after_fork_in_child(self) -> None:
        """Leave the parent's connection alone."""
        if self._client is not None:
            forks.abandon(self._client)
        self._client = self._loop = None
        self._in_flight = 0

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        self._interruptions += 1
        if client is not None:
            await client.close()

    async def _open(self) -> InferClient:
        while self._client is None:
            async with forks.no_fork():
                if self._closed:
                    raise closed_error(self._url)
                if self._client is None:  # nobody was faster
                    _check_url(self._url, self.protocol)
                    self._client = self._grpc_client() if self.protocol == "grpc" else self._http_client()
                    self._loop = asyncio.get_running_loop()
        return self._client

    def _grpc_client(self) -> InferClient:
        from tritonclient.grpc.aio import InferenceServerClient

        forks.require_grpc()
        tls = {} if self._access.tls is None else self._access.tls.grpc_arguments
        arguments = (*CHANNEL_ARGUMENTS, *BALANCED) if BALANCED_URL.fullmatch(self._url) else CHANNEL_ARGUMENTS
        client: InferClient = InferenceServerClient(self._url, channel_args=arguments, **tls)
        return client

    def _http_client(self) -> InferClient:
        from serving.http_client import HttpTritonClient

        tls = self._access.tls
        client: InferClient = HttpTritonClient(
            self._url,
            conn_limit=self._concurrency,
            conn_timeout=self.timeout if math.isfinite(self.timeout) else None,  # None: no limit
            ssl=tls is not None,
            ssl_context=tls and tls.context,  # without it, tritonclient verifies no certificate
        )
        return client

    def _tensor(self, name: str, rows: Sequence[bytes]) -> object:
        if self.protocol == "grpc":
            from tritonclient.grpc import InferInput
        else:
            from tritonclient.http import InferInput
        array = np.array(rows, dtype=np.object_)[:, None]
        tensor = InferInput(name, list(array.shape), "BYTES")
        tensor.set_data_from_numpy(array)
        return tensor

    async def ask(self, ask: Callable[[InferClient], Awaitable[T]]) -> T:
        """Await ``ask(client)`` within the time limit, as often as it may be retried.

        Raises:
            RequestError: The server refused the request, is not there, or did not answer in time.
            RuntimeError: The connection is closed.
        """
        retries = RequestRetries(self._retries)
        last: AttemptFailure | None = None
        try:
            async with asyncio.timeout(self.timeout):
                while True:
                    try:
                        answer = await self._attempt(ask)
                    except TimeoutError:  # aiohttp's, which is an aiohttp.ClientError too
                        raise
                    except CLIENT_ERRORS as error:
                        if last is None and (wrong := await self._wrong_protocol(error)) is not None:
                            raise wrong from error
                        last = self._failures.translate(error)
                        self._reached |= last.retry is not Retry.UNREACHABLE
                        live = last.retry is Retry.UNLOADED and await self._is_live()
                        pause = retries.pause(last, reached=self._reached, live=live)
                        if pause is None:
                            raise await self._last_error(last) from error
                    else:
                        self._reached = self._answered = True
                        return answer
                    await asyncio.sleep(pause)
        except TimeoutError:
            raise self._timed_out(last) from None

    async def _wrong_protocol(self, error: Exception) -> RequestError | None:
        """Return the error of a port that answers the other protocol, if that is why the first request failed; otherwise None."""
        if self._answered or self._access.tls is not None:
            return None
        if self.protocol == "http":
            return answers_grpc(self._url) if may_be_grpc(error) and await is_grpc_port(self._url) else None
        is_broken = UNREACHABLE.search(str(error)) and BROKEN.search(str(error)) and not BALANCED_URL.fullmatch(self._url)
        return answers_http(self._url) if is_broken and await is_http_port(self._url) else None

    async def _last_error(self, last: AttemptFailure) -> RequestError:
        """Return the error of a request that is not sent again."""
        may_want_tls = self.protocol == "grpc" and self._access.tls is None and not BALANCED_URL.fullmatch(self._url)
        if may_want_tls and last.retry is Retry.UNREACHABLE and await closes_connections(self._url):
            return self._failures.closed()
        return last.error

    async def _is_live(self) -> bool:
        """Return whether the server says that it is live. While it ends, it does not."""
        try:
            return await self._attempt(lambda client: client.is_server_live(headers=self.headers))
        except CLIENT_ERRORS:
            return False

    async def once(self, answer: Awaitable[T]) -> T:
        """Await more of an answer that has begun, within the time limit: what has begun is not sent again.

        Raises:
            RequestError: As for :meth:`ask`.
        """
        interruptions = self._interruptions
        try:
            async with asyncio.timeout(self.timeout):
                return await answer
        except TimeoutError:
            raise self._timed_out(None) from None
        except CLIENT_ERRORS as error:
            raise self._failures.translate(error).error from error
        except asyncio.CancelledError:  # as in _attempt
            if self._closed or self._interruptions == interruptions or _is_cancelled(asyncio.current_task()):
                raise
            raise RequestError("a fork of this process closed the connection", status="CANCELLED", hint="ask again") from None

    async def _attempt(self, ask: Callable[[InferClient], Awaitable[T]]) -> T:
        """Await ``ask(client)``, and once more if a fork interrupted it."""
        while True:
            client = await self._open()
            interruptions = self._interruptions
            self._in_flight += 1
            try:
                return await ask(client)
            except asyncio.CancelledError:  # gRPC raises it too where the channel was closed
                if self._closed or self._interruptions == interruptions or _is_cancelled(asyncio.current_task()):
                    raise
            finally:
                del client  # gRPC ends when nobody holds the channel
                self._in_flight -= 1

    def _timed_out(self, last: AttemptFailure | None) -> RequestError:
        message = f"{self._url} did not answer within {self.timeout:g} s"
        hint, request_id = "raise the timeout", current_request().request_id
        if last is not None:
            message = f"{message}; last: {last.error.message}"
            hint, request_id = last.error.hint or hint, last.error.request_id or request_id
        return RequestError(message, status="DEADLINE_EXCEEDED", hint=hint).of_request(request_id)


def closed_error(what: str) -> RuntimeError:
    """Return the error of a client that is used after its ``close()``."""
    return RuntimeError(f"the client of {what} is closed: create a new one")


def _is_cancelled(task: asyncio.Task[Any] | None) -> bool:
    """Return whether somebody wants the task itself to end."""
    return task is None or task.cancelling() > 0


def _check_url(url: str, protocol: WireProtocol) -> None:
    found = BALANCED_URL.fullmatch(url) if protocol == "grpc" else None
    try:
        wrong = any(map(str.isspace, url)) or urlsplit(f"//{url if found is None else found[1]}").port == 0
        wrong |= found is None and "://" in url
    except ValueError:  # the port is not a number, or out of range
        wrong = True
    if wrong:
        raise bad_url(url)
