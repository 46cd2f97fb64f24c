"""The asynchronous client: ``transformers.pipeline`` with the model on a Triton server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from serving import forks, streams
from serving.connection import DEFAULT_URLS, Connection, closed_error
from serving.errors import DataError, InvalidArgumentError, PipelineError, RequestError
from serving.options import RequestOptions, WireProtocol
from serving.runtime.digest import DIGEST, ForeignAnswerError, row_digests
from serving.runtime.tasks import load_served
from serving.runtime.tasks.base import ServedTask
from serving.runtime.types import Arrays

T = TypeVar("T")
RequestRow = tuple[str, ...]
"""The strings of one row of a request, in the order of the ensemble's inputs."""


class EnsembleIdentity(TypedDict):
    """What tells an ensemble from another: its name and the parameters in its Triton configuration."""

    ensemble: str
    parameters: dict[str, str]


class ClientOptions(TypedDict, total=False):
    """Keyword arguments of :class:`AsyncTritonPipeline`, which documents them."""

    url: str | None
    protocol: WireProtocol
    batch_size: int
    concurrency: int
    timeout: float
    retries: int | None
    ssl: bool | str | Path
    api_key: str | None


class AsyncTritonPipeline:
    """Call a model on a Triton server from asynchronous code.

    :class:`~serving.client.TritonPipeline` does the same without ``await``.
    """

    def __init__(
        self,
        name: str,
        *,
        url: str | None = RequestOptions.url,
        protocol: WireProtocol = RequestOptions.protocol,
        batch_size: int = RequestOptions.batch_size,
        concurrency: int = RequestOptions.concurrency,
        timeout: float = RequestOptions.timeout,
        retries: int | None = None,
        ssl: bool | str | Path = False,
        api_key: str | None = None,
    ) -> None:
        """Create the client. It connects at the first call.

        Args:
            name: The name of the ensemble.
            url: ``host:port`` of the server for this protocol. None means the default port on this machine.
            protocol: ``grpc`` or ``http``.
            batch_size: Rows in one request, at most the server's ``max_batch_size``. The server batches requests itself, so 1 is
                rarely slower. Larger values save round trips to a distant server.
            concurrency: Requests that one call has in flight at the same time. Over HTTP also the number of connections, which
                all calls share.
            timeout: Time limit of one request in seconds, retries included.
            retries: Maximum number of retries of a request that the server could not take, or whose connection broke; inference
                has no side effects. None: as many as the timeout allows, so that requests survive a restart of the server. But
                if this client has never reached the server, it gives up after 0.7 s without a connection.
            ssl: Use TLS: gRPC with TLS, or HTTP behind a TLS proxy. The server's certificate is verified: with True by the CAs
                that this machine trusts, with a path by those in this PEM file.
            api_key: Sent with every request as the header ``x-api-key``. None means the environment variable
                ``TRITONIZE_API_KEY``, if it is set.

        Raises:
            ValueError: ``protocol``, ``batch_size``, ``concurrency``, ``ssl`` or ``api_key`` has a value that is not allowed.
        """
        if protocol not in DEFAULT_URLS:
            raise ValueError(f"protocol must be grpc or http, not {protocol!r}")
        if batch_size < 1 or concurrency < 1:
            raise ValueError("batch_size and concurrency must be 1 or more")
        self.name = name
        self._options = ClientOptions(
            url=url,
            protocol=protocol,
            batch_size=batch_size,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            ssl=ssl,
            api_key=api_key,
        )
        self._batch_size = batch_size
        self._concurrency = concurrency
        self._connection = Connection(
            url, protocol=protocol, concurrency=concurrency, timeout=timeout, retries=retries, ssl=ssl, api_key=api_key
        )
        self._closed = False
        self._task: ServedTask | None = None
        self._parameters: dict[str, str] = {}

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        """Pickle the arguments: a copy connects on its own. A key from the environment is not in the pickle, but read again."""
        return partial(type(self), self.name, **self._options), ()

    async def connect(self) -> ServedTask:
        """Ask the server for the ensemble's task. Only the first call sends a request.

        Returns:
            The task, with the settings that it is served with.

        Raises:
            RequestError: There is no server, no such ensemble, or tritonize did not package this model.
            RuntimeError: The client is closed.
        """
        if self._closed:
            raise closed_error(self.name)
        if self._task is not None:
            return self._task
        config = await self._connection.model_config(self.name)
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        if "task" not in parameters:
            raise RequestError(
                f"{self.name} is not an ensemble that tritonize packaged",
                status="INVALID_ARGUMENT",
                hint="give the name of the ensemble, not of one of its steps or of another model",
            )
        self._batch_size = min(self._batch_size, int(config["max_batch_size"]))
        self._parameters = parameters
        async with forks.no_fork():
            self._task = self._load_task(parameters)
        return self._task

    def _load_task(self, parameters: dict[str, str]) -> ServedTask:
        try:
            return load_served(parameters["task"], json.loads(parameters["settings"]))
        except (KeyError, ValueError) as error:
            raise RequestError(
                f"{self.name} was packaged by another version of tritonize: {error}",
                status="INVALID_ARGUMENT",
                hint="package it again with: tritonize package",
            ) from error

    async def identity(self) -> EnsembleIdentity:
        """Return the ensemble's name and the parameters that packaging wrote into its configuration."""
        await self.connect()
        return {"ensemble": self.name, "parameters": dict(sorted(self._parameters.items()))}

    async def __call__(self, *arguments: object, **options: object) -> Any:
        """Return what ``transformers.pipeline(task)(*arguments, **options)`` returns for the served checkpoint.

        Raises:
            TypeError: The inputs have a form that the pipeline does not take, or an option is unknown or of another type. This and
                the next ones are the classes of ``transformers.pipeline``; nothing has been sent.
            KeyError: An option is not one of its choices, or a row lacks a key.
            ValueError: The content of the inputs or of an option is not allowed.
            DataError: A text cannot be encoded as UTF-8.
            InvalidArgumentError: The server refused a row. It is a ``ValueError`` too.
            PipelineError: The server refused a row for which the pipeline raises its ``PipelineException``.
            RequestError: The server is not there, or did not answer in time.
        """
        task = await self.connect()
        inputs, given = task.parse_call(arguments, options)
        call = _Call.of(task, given)
        rows = task.parse_inputs(inputs)
        task.check_rows(rows)
        answers = await self._all_answers(rows, partial(self._ask, call))
        return task.format_result(inputs, answers, given)

    async def tensors(self, rows: Sequence[Sequence[str]], **options: object) -> list[Arrays]:
        """Return the ensemble's output tensors without further processing.

        Args:
            rows: The strings of each row, in the order of the ensemble's inputs.
            **options: Request parameters.

        Returns:
            For each request, its tensors by name; their first axis is the rows of the request.

        Raises:
            RequestError: As for :meth:`__call__`.
        """
        call = _Call(task=await self.connect(), parameters=options, formatting={})
        return await self._all_answers([tuple(row) for row in rows], partial(self._raw_answers, call))

    async def stream(self, inputs: AsyncIterable[object], **options: object) -> AsyncGenerator[Any, None]:
        """Yield the answers to any number of rows, in the order of the rows.

        Up to ``concurrency`` requests are in flight, and no more rows are read than they need. An answer waits only for the
        other rows of its own request. If reading a row fails, the rows before it are answered first.

        Args:
            inputs: The rows, each in a form that :meth:`__call__` takes.
            **options: As for :meth:`__call__`.
        """
        task = await self.connect()
        _, given = task.parse_call(([],), options)

        async def checked() -> AsyncGenerator[RequestRow, None]:
            async for row in inputs:
                (request,) = task.parse_inputs(task.parse_call(([row],), options)[0])
                task.check_rows([request])
                yield request

        rows = checked()
        call = _Call.of(task, given)
        async with contextlib.aclosing(rows), contextlib.aclosing(self._answers(rows, call)) as answers:
            async for answer in answers:
                yield answer

    async def close(self) -> None:
        """Close the connection. The client cannot be used afterwards."""
        self._closed = True
        await self._connection.close()

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.connect()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connection."""
        await self.close()

    async def _all_answers(self, rows: list[RequestRow], ask: Callable[[list[RequestRow]], Awaitable[list[T]]]) -> list[T]:
        """Answer rows that are all known, with one worker per request that may be in flight."""
        batches = [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        answers: list[list[T]] = [[] for _ in batches]
        waiting = iter(enumerate(batches))

        async def work() -> None:
            for index, batch in waiting:
                answers[index] = await ask(batch)

        workers = [asyncio.ensure_future(work()) for _ in range(min(self._concurrency, len(batches)))]
        try:
            await asyncio.gather(*workers)
        finally:
            await streams.cancel(workers)
        return [answer for batch in answers for answer in batch]

    async def _answers(self, rows: AsyncIterator[RequestRow], call: _Call) -> AsyncGenerator[Any, None]:
        batches = streams.batches(rows, self._batch_size)
        reading: asyncio.Future[list[RequestRow] | streams.End] | None = None
        in_flight: deque[asyncio.Future[list[Any]]] = deque()
        try:
            while True:
                if reading is None and len(in_flight) < self._concurrency:
                    reading = asyncio.ensure_future(anext(batches, streams.END))
                # Wait for both, so that a pause in the rows does not delay an answer, nor a slow answer the next request.
                either = [future for future in (reading, *islice(in_flight, 1)) if future is not None]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if reading is None or not reading.done():
                    for answer in in_flight.popleft().result():
                        yield answer
                elif reading.exception() is not None or (batch := reading.result()) is streams.END:
                    break
                else:
                    in_flight.append(asyncio.ensure_future(self._ask(call, batch)))
                    reading = None
            while in_flight:
                for answer in await in_flight.popleft():
                    yield answer
            reading.result()  # raises the exception of the rows, if there was one
        finally:
            await streams.cancel([*in_flight, *([reading] if reading is not None else [])])
            await batches.aclose()

    async def _ask(self, call: _Call, rows: Sequence[RequestRow]) -> list[Any]:
        answers = call.task.format_answers(await self._tensors(call, rows), **call.formatting)
        return list(call.task.add_inputs(answers, rows))

    async def _raw_answers(self, call: _Call, rows: Sequence[RequestRow]) -> list[Arrays]:
        return [await self._tensors(call, rows)]

    async def _tensors(self, call: _Call, rows: Sequence[RequestRow]) -> Arrays:
        rows, described = call.task.request_rows(rows)
        columns = zip(call.task.inputs(), zip(*rows, strict=True), strict=True)
        tensors = {tensor.name: list(map(_encoded, column)) for tensor, column in columns}
        try:
            result = await self._connection.infer(self.name, tensors, {**call.parameters, **described})
        except InvalidArgumentError as error:
            if not any(part in error.message for part in call.task.pipeline_refusals):
                raise
            kind = PipelineError.catchable()
            raise kind(error.message, task=call.task.name, model=self.name, hint=error.hint) from error
        if result.get_output(DIGEST) is not None:  # a proxy may have compared and removed it
            _require_own_answer(result.as_numpy(DIGEST), tensors)
        return {tensor.name: result.as_numpy(tensor.name) for tensor in call.task.outputs()}


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One call of the pipeline, without its inputs.

    Attributes:
        task: The task of the ensemble.
        parameters: Options that the server applies, sent as request parameters.
        formatting: Options that the client applies to the server's answer.
    """

    task: ServedTask
    parameters: Mapping[str, object]
    formatting: Mapping[str, object]

    @classmethod
    def of(cls, task: ServedTask, given: Mapping[str, object]) -> Self:
        """Split the options of a pipeline call into those of the server and those of the client.

        Raises:
            TypeError: There is no such option, or it has another type.
            KeyError: An option is not one of its choices.
            ValueError: An option has a value that is not allowed.
        """
        parameters, formatting = task.sanitize_parameters(given)
        task.with_options(parameters)
        return cls(task=task, parameters=parameters, formatting=formatting)


def _require_own_answer(found: npt.NDArray[np.int64], sent: Mapping[str, Sequence[bytes]]) -> None:
    """Check that an answer has the digests of the rows that were sent.

    Args:
        found: INT64 ``[rows, 1]``, the digests that came with the answer.
        sent: The rows of each input tensor.

    Raises:
        RequestError: The answer belongs to another request.
    """
    if not np.array_equal(found.reshape(-1), row_digests(sent)):
        raise RequestError(
            f"{ForeignAnswerError()}: its digest is not that of the texts sent",
            status="INTERNAL",
            hint="send the request again; if this repeats, restart the server",
        )


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text holds half of a surrogate pair, which UTF-8 cannot encode: {text!r:.80}",
            hint="decode the bytes that the text came from as UTF-8",
        ) from error
