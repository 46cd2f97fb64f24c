"""``TritonPipeline``: ``transformers.pipeline`` with the model on a Triton server. Same inputs, same answers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import json
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from serving import streams
from serving.connection import DEFAULT_URLS, Connection, Protocol, closed_error
from serving.errors import DataError, RequestError
from serving.runtime.tasks import load_task
from serving.runtime.tasks.base import Arrays, Task

T = TypeVar("T")


class AsyncTritonPipeline:
    """The asynchronous client; :class:`TritonPipeline` is the same without ``await``.

    Args:
        name: the ensemble.
        url: ``host:port`` of the protocol; this machine's default port where None.
        protocol: ``grpc`` or ``http``.
        batch_size: rows sent in one request, at most the server's ``max_batch_size``. The server puts requests together
            itself, so 1 is seldom slower; larger saves round trips to a server far away.
        concurrency: requests one call has in flight at once; over HTTP also the connections that all calls share.
        timeout: seconds one request may take, retries included.
        retries: further tries of a request that the server was not there to take (UNAVAILABLE), and of no other.
        ssl: gRPC with TLS, HTTP behind a TLS proxy; the server's certificate is verified.
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
        self._batch_size = batch_size
        self._concurrency = concurrency
        self._connection = Connection(url, protocol=protocol, concurrency=concurrency, timeout=timeout, retries=retries, ssl=ssl)
        self._closed = False
        self._task: Task | None = None
        self._parameters: dict[str, str] = {}

    async def connect(self) -> Task:
        """Ask the server which task the ensemble does; done once, on the first call.

        Raises:
            RequestError: no server there, no such ensemble, or a model that tritonize did not package.
            RuntimeError: the client was closed.
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
                hint=f"ask for the ensemble itself, not {self.name!r}",
            )
        self._batch_size = min(self._batch_size, int(config["max_batch_size"]))
        self._parameters = parameters
        self._task = load_task(parameters["task"], json.loads(parameters["settings"]))
        return self._task

    async def identity(self) -> dict[str, Any]:
        """What tells this ensemble from another, JSON-ready: its name, and all that packaging wrote into its configuration."""
        await self.connect()
        return {"ensemble": self.name, "parameters": dict(sorted(self._parameters.items()))}

    async def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What ``transformers.pipeline(task)(*arguments, **options)`` returns for the checkpoint that is served.

        Raises:
            TypeError: inputs of another form than the pipeline takes, or an option it does not know.
            DataError: a text that cannot be written as UTF-8.
            RequestError: the server refused a row, is not there, or did not answer in time.
        """
        task = await self.connect()
        inputs, options = task.call(arguments, options)
        rows = task.request_rows(inputs)
        task.check_rows(rows)
        answers = await self._all_answers(rows, _Options.of(task, options))
        return task.pipeline_result(inputs, answers, options)

    async def tensors(self, rows: Sequence[Sequence[str]], **options: Any) -> list[Arrays]:
        """Answers as the ensemble gives them: the tensors of each request by name, their first axis the request's rows.

        Args:
            rows: the strings of each row, in the order of the ensemble's inputs.
            options: request parameters.

        Raises:
            RequestError: as for :meth:`__call__`.
        """
        await self.connect()
        return await self._all_answers([tuple(row) for row in rows], _Options(asked=options, shown={}, raw=True))

    async def stream(self, inputs: AsyncIterable[Any], **options: Any) -> AsyncGenerator[Any, None]:
        """Answers to any number of rows, in their order, with ``concurrency`` requests in flight and no more rows read
        than that needs. An answer does not wait for the rows after its own (but for those of its batch); where reading a row
        fails, those before it are answered first."""
        task = await self.connect()
        _, asked = task.call(([],), options)

        async def checked() -> AsyncGenerator[tuple[str, ...], None]:
            async for row in inputs:
                (request,) = task.request_rows(task.call(([row],), options)[0])
                task.check_rows([request])
                yield request

        rows = checked()
        chosen = _Options.of(task, asked)
        async with contextlib.aclosing(rows), contextlib.aclosing(self._answers(rows, chosen)) as answers:
            async for answer in answers:
                yield answer

    async def close(self) -> None:
        """Close the connection, for good."""
        self._closed = True
        await self._connection.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _all_answers(self, rows: list[tuple[str, ...]], options: _Options) -> list[Any]:
        """Answers to rows that are all at hand: as many workers as requests may be in flight, each taking the next batch."""
        batches = [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        answers: list[list[Any]] = [[] for _ in batches]
        waiting = iter(enumerate(batches))

        async def work() -> None:
            for index, batch in waiting:
                answers[index] = await self._ask(batch, options)

        workers = [asyncio.ensure_future(work()) for _ in range(min(self._concurrency, len(batches)))]
        try:
            await asyncio.gather(*workers)
        finally:
            await streams.cancel(workers)
        return [answer for batch in answers for answer in batch]

    async def _answers(self, rows: AsyncIterator[tuple[str, ...]], options: _Options) -> AsyncGenerator[Any, None]:
        batches = streams.batches(rows, self._batch_size)
        reading: asyncio.Future[Any] | None = None
        flying: deque[asyncio.Future[list[Any]]] = deque()
        try:
            while True:
                if reading is None and len(flying) < self._concurrency:
                    reading = asyncio.ensure_future(anext(batches, streams.END))
                # Whichever comes first, so that neither a pause in the rows nor a slow answer holds the other up.
                either = [future for future in (reading, *islice(flying, 1)) if future is not None]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if reading is None or not reading.done():
                    for answer in flying.popleft().result():
                        yield answer
                elif reading.exception() is not None or reading.result() is streams.END:
                    break
                else:
                    flying.append(asyncio.ensure_future(self._ask(reading.result(), options)))
                    reading = None
            while flying:
                for answer in await flying.popleft():
                    yield answer
            reading.result()  # raises what the rows raised
        finally:
            await streams.cancel([*flying, *([reading] if reading is not None else [])])
            await batches.aclose()

    async def _ask(self, rows: Sequence[tuple[str, ...]], options: _Options) -> list[Any]:
        assert self._task is not None
        answers = await self._tensors(rows, options)
        if options.raw:
            return [answers]
        return self._task.completed(self._task.pipeline_answers(answers, **options.shown), rows)

    async def _tensors(self, rows: Sequence[tuple[str, ...]], options: _Options) -> Arrays:
        assert self._task is not None
        columns = zip(self._task.inputs(), zip(*rows, strict=True), strict=True)
        tensors = {tensor.name: list(map(_encoded, column)) for tensor, column in columns}
        result = await self._connection.infer(self.name, tensors, options.asked)
        return {tensor.name: result.as_numpy(tensor.name) for tensor in self._task.outputs()}


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What a call asks for.

    Args:
        asked: of the server, as request parameters.
        shown: of what the server answers; here it is decided what of it is given back.
        raw: give back the tensors of each request themselves.
    """

    asked: dict[str, Any]
    shown: dict[str, Any]
    raw: bool = False

    @classmethod
    def of(cls, task: Task, given: dict[str, Any]) -> Self:
        """``given`` as the pipeline takes them.

        Raises:
            TypeError: an option is of another kind than the task's, or not allowed.
            ValueError: the pipeline refuses such a call.
        """
        asked = task.asked(given)
        try:
            task.request_options(asked)
        except ValueError as error:
            raise TypeError(str(error)) from None
        return cls(
            asked=asked, shown={name: value for name, value in given.items() if name not in task.options or name in task.shaping}
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
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"TritonPipeline {name}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """The ensemble."""
        return self._pipeline.name

    @property
    def task(self) -> str:
        """What the ensemble does, as ``transformers.pipeline`` calls it."""
        return self._wait(self._pipeline.connect()).name

    @property
    def served_task(self) -> Task:
        """The task with the settings it is served with."""
        return self._wait(self._pipeline.connect())

    @property
    def identity(self) -> dict[str, Any]:
        """See :meth:`AsyncTritonPipeline.identity`."""
        return self._wait(self._pipeline.identity())

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See :meth:`AsyncTritonPipeline.__call__`."""
        return self._wait(self._pipeline(*arguments, **options))

    def tensors(self, rows: Sequence[Sequence[str]], **options: Any) -> list[Arrays]:
        """See :meth:`AsyncTritonPipeline.tensors`."""
        return self._wait(self._pipeline.tensors(rows, **options))

    def stream(self, inputs: Iterable[Any], **options: Any) -> Iterator[Any]:
        """See :meth:`AsyncTritonPipeline.stream`. Anything but a list or tuple is read in a thread of its own, so it may block."""
        rows = streams.each(inputs) if isinstance(inputs, list | tuple) else streams.each_in_thread(inputs)
        answers = self._pipeline.stream(rows, **options)
        try:
            while (answer := self._wait(anext(answers, streams.END))) is not streams.END:
                yield answer
        finally:
            if not self._closed:  # else close() has ended both
                self._wait(streams.close(answers, rows))

    def close(self) -> None:
        """Close the connection and end the thread behind it; streams that are still open end."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ended = self._submit(self._end())
        self._result(ended)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def _end(self) -> None:
        await streams.cancel(asyncio.all_tasks() - {asyncio.current_task()})
        await self._loop.shutdown_asyncgens()
        await self._pipeline.close()

    def _wait(self, awaitable: Awaitable[T]) -> T:
        with self._lock:  # closing cancels what was submitted before it, and nothing is after it
            if not self._closed:
                submitted = self._submit(awaitable)
            elif inspect.iscoroutine(awaitable):
                awaitable.close()
            closed = self._closed
        if closed:
            raise closed_error(self._pipeline.name)
        try:
            return self._result(submitted)
        except concurrent.futures.CancelledError:
            raise closed_error(self._pipeline.name) from None  # nothing else cancels: another thread has closed this

    def _submit(self, awaitable: Awaitable[T]) -> _Submitted[T]:
        """Have it awaited on the loop."""
        submitted: _Submitted[T] = _Submitted(awaitable)
        self._loop.call_soon_threadsafe(submitted.start)
        return submitted

    def _result(self, submitted: _Submitted[T]) -> T:
        """What came of it. Whoever is interrupted here goes on when it has ended: nothing it used is in use then."""
        try:
            return submitted.result.result()
        except BaseException:  # Ctrl-C above all: it reaches the thread that waits and not the loop, which works on
            if not submitted.result.done():
                self._loop.call_soon_threadsafe(submitted.cancel)
                concurrent.futures.wait([submitted.result])
            raise


class _Submitted(Generic[T]):
    """An awaitable that another thread's loop awaits. All but ``result`` is that thread's."""

    def __init__(self, awaitable: Awaitable[T]) -> None:
        self.result: concurrent.futures.Future[T] = concurrent.futures.Future()
        """Done when the awaitable has ended, not when that was asked for."""
        self._awaitable = awaitable
        self._task: asyncio.Future[T]

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._awaitable)
        self._task.add_done_callback(self._settle)

    def cancel(self) -> None:
        self._task.cancel()

    def _settle(self, task: asyncio.Future[T]) -> None:
        if task.cancelled():
            self.result.cancel()
            self.result.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"half of a surrogate pair is no text: {text!r:.80}", hint="decode the bytes it came from as UTF-8"
        ) from error
