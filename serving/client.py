"""``TritonPipeline``: ``transformers.pipeline`` with the model on a Triton server. Same inputs, same answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import aiohttp
import grpc
import numpy as np
from tritonclient.utils import InferenceServerException

from serving.errors import RequestError
from serving.runtime.tasks import load_task
from serving.runtime.tasks.base import Arrays, Task

Protocol = Literal["grpc", "http"]
DEFAULT_URLS = {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000"}
HTTP_STATUSES = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND", "503": "UNAVAILABLE", "504": "DEADLINE_EXCEEDED"}
FIRST_PAUSE = 0.1
T = TypeVar("T")


class AsyncTritonPipeline:
    """The asynchronous client; :class:`TritonPipeline` is the same without ``await``.

    Args:
        name: the ensemble.
        url: ``host:port`` of the protocol; this machine's default port where None.
        protocol: ``grpc`` or ``http``.
        batch_size: rows sent in one request, at most the server's ``max_batch_size``. The server puts requests together
        itself, so 1 is
            seldom slower; larger saves round trips to a server far away.
        concurrency: requests in flight at once.
        timeout: seconds one request may take, retries included.
        retries: further tries of a request that the server was not there to take (UNAVAILABLE), and of no other.
        ssl: gRPC with TLS, HTTP behind a TLS proxy.
    """

    def __init__(
        self,
        name: str,
        *,
        url: str | None = None,
        protocol: Protocol = "grpc",
        batch_size: int = 1,
        concurrency: int = 16,
        timeout: float = 60.0,
        retries: int = 3,
        ssl: bool = False,
    ) -> None:
        if protocol not in DEFAULT_URLS:
            raise ValueError(f"protocol must be grpc or http, not {protocol!r}")
        if batch_size < 1 or concurrency < 1:
            raise ValueError("batch_size and concurrency must be 1 or more")
        self.name = name
        self._url = url or DEFAULT_URLS[protocol]
        self._protocol = protocol
        self._batch_size = batch_size
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._ssl = ssl
        self._client: Any = None
        self._task: Task | None = None

    async def connect(self) -> Task:
        """Ask the server which task the ensemble does; done once, on the first call.

        Raises:
            RequestError: no server there, no such ensemble, or a model that tritonize did not package.
        """
        if self._task is not None:
            return self._task
        if self._protocol == "grpc":
            from tritonclient.grpc.aio import InferenceServerClient
        else:
            from tritonclient.http.aio import InferenceServerClient
        if self._client is None:
            self._client = InferenceServerClient(self._url, ssl=self._ssl)
        options = {"as_json": True} if self._protocol == "grpc" else {}
        answer = await self._resilient(lambda: self._client.get_model_config(self.name, **options))
        config = answer.get("config", answer)
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        if "task" not in parameters:
            raise RequestError(
                f"{self.name} is not an ensemble that tritonize packaged",
                status="INVALID_ARGUMENT",
                hint=f"ask for the ensemble itself, not {self.name!r}",
            )
        self._batch_size = min(self._batch_size, int(config["max_batch_size"]))
        self._task = load_task(parameters["task"], json.loads(parameters["settings"]))
        return self._task

    async def __call__(self, inputs: Any, **options: Any) -> Any:
        """What ``transformers.pipeline(task)(inputs, **options)`` returns for the checkpoint that is served.

        Raises:
            TypeError: inputs of another form than the pipeline takes, or an option it does not know.
            RequestError: the server refused a row, is not there, or did not answer in time.
        """
        task = await self.connect()
        rows = task.request_rows(inputs)
        answers = [answer async for answer in self._answers(_each(rows), options)]
        return task.pipeline_result(inputs, answers, options)

    async def stream(self, inputs: AsyncIterable[Any], **options: Any) -> AsyncIterator[Any]:
        """Answers to any number of rows, in their order, with ``concurrency`` requests in flight and no more rows read
        than that needs."""
        task = await self.connect()

        async def rows() -> AsyncIterator[tuple[str, ...]]:
            async for row in inputs:
                yield task.request_rows([row])[0]

        async for answer in self._answers(rows(), options):
            yield answer

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _answers(self, rows: AsyncIterable[tuple[str, ...]], options: dict[str, Any]) -> AsyncIterator[Any]:
        flying: deque[asyncio.Task[list[Any]]] = deque()
        try:
            batch: list[tuple[str, ...]] = []
            async for row in rows:
                batch.append(row)
                if len(batch) < self._batch_size:
                    continue
                flying.append(asyncio.ensure_future(self._ask(batch, options)))
                batch = []
                if len(flying) >= self._concurrency:
                    for answer in await flying.popleft():
                        yield answer
            if batch:
                flying.append(asyncio.ensure_future(self._ask(batch, options)))
            while flying:
                for answer in await flying.popleft():
                    yield answer
        finally:
            for request in flying:
                request.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    async def _ask(self, rows: Sequence[tuple[str, ...]], options: dict[str, Any]) -> list[Any]:
        assert self._task is not None
        inputs = self._infer_inputs(self._task, rows)
        result = await self._resilient(lambda: self._client.infer(self.name, inputs))
        answers: Arrays = {tensor.name: result.as_numpy(tensor.name) for tensor in self._task.outputs()}
        return self._task.pipeline_answers(answers, **options)

    def _infer_inputs(self, task: Task, rows: Sequence[tuple[str, ...]]) -> list[Any]:
        if self._protocol == "grpc":
            from tritonclient.grpc import InferInput
        else:
            from tritonclient.http import InferInput
        inputs = []
        for tensor, column in zip(task.inputs(), zip(*rows, strict=True), strict=True):
            array = np.array([text.encode() for text in column], dtype=np.object_)[:, None]
            inputs.append(InferInput(tensor.name, list(array.shape), "BYTES"))
            inputs[-1].set_data_from_numpy(array)
        return inputs

    async def _resilient(self, call: Any) -> Any:
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
            raise RequestError(
                f"{self._url} did not answer within {self._timeout:g} s", status="DEADLINE_EXCEEDED", hint="raise the timeout"
            ) from None
        raise AssertionError("unreachable: the last try returns or raises")

    def _failure(self, error: Exception) -> RequestError:
        if isinstance(error, aiohttp.ClientError):
            return self._unavailable()
        if isinstance(error, InferenceServerException):
            status = str(error.status()).removeprefix("StatusCode.")
            status = HTTP_STATUSES.get(status, "INTERNAL" if status.isdigit() else status)
            message = error.message()
        else:
            assert isinstance(error, grpc.aio.AioRpcError)
            status, message = error.code().name, error.details() or ""
        if status == "UNAVAILABLE" and "connect" in message:
            return self._unavailable()
        return RequestError(message, status=status)

    def _unavailable(self) -> RequestError:
        return RequestError(
            f"no Triton server answers {self._protocol} at {self._url}",
            status="UNAVAILABLE",
            hint="start one with: tritonize serve",
        )


class TritonPipeline:
    """``transformers.pipeline`` with the model on a Triton server.

    ::

        with TritonPipeline("reviews") as pipe:
            pipe("A warm, funny film.")  # [{'label': 'positive', 'score': 0.99…}]

    Arguments are those of :class:`AsyncTritonPipeline`. Safe to use from several threads.
    """

    def __init__(self, name: str, **arguments: Any) -> None:
        self._pipeline = AsyncTritonPipeline(name, **arguments)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"TritonPipeline {name}", daemon=True)
        self._thread.start()

    @property
    def task(self) -> str:
        """What the ensemble does, as ``transformers.pipeline`` calls it."""
        return self._wait(self._pipeline.connect()).name

    @property
    def takes_pairs(self) -> bool:
        """Whether a row is ``{"text": …, "text_pair": …}``."""
        return self._wait(self._pipeline.connect()).pair

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See :meth:`AsyncTritonPipeline.__call__`."""
        return self._wait(self._pipeline(inputs, **options))

    def stream(self, inputs: Iterable[Any], **options: Any) -> Iterator[Any]:
        """See :meth:`AsyncTritonPipeline.stream`."""
        answers = self._pipeline.stream(_each(inputs), **options)
        try:
            while True:
                try:
                    yield self._wait(anext(answers))  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
        finally:
            self._wait(answers.aclose())  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the connection and end the thread behind it."""
        if not self._loop.is_closed():
            self._wait(self._pipeline.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _each(rows: Iterable[T]) -> AsyncIterator[T]:
    for row in rows:
        yield row
