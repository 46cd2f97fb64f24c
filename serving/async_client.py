"""The asynchronous client: ``transformers.pipeline`` with the model on a Triton server."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, cast

from serving import forks, generation_call, streams
from serving.access import ClientAccess, FilePath
from serving.connection import DEFAULT_URLS, Connection, closed_error
from serving.errors import InvalidArgumentError, PipelineError, TruncationWarning
from serving.options import RequestOptions, WireProtocol
from serving.own_answers import require_own_answer
from serving.pipeline_attributes import PipelineAttributes
from serving.pipeline_call import ItemGroups, LazyCall, PipelineCall, check_batching
from serving.raw_rows import raw_rows
from serving.runtime.digest import DIGEST, TRUNCATED
from serving.runtime.tasks._generation import GenerationTask
from serving.runtime.tasks.base import ServedTask
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.types import Arrays, JsonValue
from serving.served_ensemble import ServedEnsemble

T = TypeVar("T")
OVERTAKING = 4
"""Requests of a stream that are in flight or wait for an earlier answer, at most, as a multiple of those in flight."""
RequestRow = tuple[str, ...]
"""The strings of one row of a request, in the order of the ensemble's inputs."""
MarkedAnswer = tuple[Any, bool]
"""The answer to a row, and whether the row was truncated."""


class EnsembleIdentity(TypedDict):
    """What tells an ensemble from another: its name and its task, settings and model in its Triton configuration."""

    ensemble: str
    parameters: dict[str, str]


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
        batch_size: int | None = RequestOptions.batch_size,
        num_workers: int | None = None,
        concurrency: int = RequestOptions.concurrency,
        timeout: float = RequestOptions.timeout,
        retries: int | None = None,
        ssl: bool | FilePath = False,
        ca: FilePath | None = None,
        certificate: FilePath | None = None,
        key: FilePath | None = None,
        api_key: str | None = None,
        api_key_file: FilePath | None = None,
        **defaults: object,
    ) -> None:
        """Create the client. It connects at the first call.

        Args:
            name: The name of the ensemble.
            url: ``host:port`` of the server for this protocol; for gRPC also ``dns:///host:port``, whose requests go to all
                addresses of the host in turn. None means the default port on this machine.
            protocol: ``grpc`` or ``http``.
            batch_size: Rows in one request, at most the server's ``max_batch_size``. The server batches requests itself, so 1 is
                rarely slower. Larger values save round trips to a distant server. None means 1.
            num_workers: Has no effect. The pipeline's workers tokenize; here the server does.
            concurrency: Requests that one call has in flight at the same time. Over HTTP also the number of connections, which
                all calls share.
            timeout: Time limit of one request in seconds, retries included.
            retries: Maximum number of retries of a request that the server could not take, or whose connection broke; inference
                has no side effects. None: as many as the timeout allows, so that requests survive a restart of the server. But
                if this client has never reached the server, it gives up after 0.7 s without a connection.
            ssl: Use TLS. The server's certificate is verified: with True by the CAs that this machine trusts, with a path by those
                in this PEM file.
            ca: The path of such a file. It means TLS too.
            certificate: PEM file of the certificate chain of this client, for a server that asks for one.
            key: PEM file of its private key.
            api_key: Sent with every request as the header ``x-api-key``. None means the environment variable
                ``TRITONIZE_API_KEY``, if it is set.
            api_key_file: A file whose first line is the API key. It is read again when it changes.
            **defaults: Options of the pipeline, such as ``top_k=2``, for every call that does not have another value.

        Raises:
            SetupError: The file of the API key cannot be used.
            ValueError: An argument has a value that is not allowed.
        """
        if protocol not in DEFAULT_URLS:
            raise ValueError(f"protocol must be grpc or http, not {protocol!r}")
        if concurrency < 1:
            raise ValueError("concurrency must be 1 or more")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:  # NaN is not above 0
            raise ValueError(f"timeout must be a number of seconds above 0, or math.inf for no limit, not {timeout!r:.80}")
        self.name = name
        batching = {"batch_size": batch_size, "num_workers": num_workers}
        connecting: dict[str, Any] = {"url": url, "protocol": protocol, "timeout": timeout, "retries": retries}
        access: dict[str, Any] = {"ssl": ssl, "ca": ca, "certificate": certificate, "key": key}
        access |= {"api_key": api_key, "api_key_file": api_key_file}
        self._options: dict[str, Any] = {"concurrency": concurrency, **batching, **connecting, **access, **defaults}
        self._batch_size = check_batching(batching) or 1
        self._defaults = defaults
        self._concurrency = concurrency
        self._connection = Connection(concurrency=concurrency, access=ClientAccess(**access), **connecting)
        self._closed = False
        self._has_warned = False
        self._ensemble: ServedEnsemble | None = None

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
        return (await self._connect()).task

    async def identity(self) -> EnsembleIdentity:
        """Return the ensemble's name and the parameters in its configuration that decide its answers."""
        parameters = (await self._connect()).parameters
        decisive = {name: value for name, value in sorted(parameters.items()) if name != "description"}
        return {"ensemble": self.name, "parameters": decisive}

    async def attributes(self) -> PipelineAttributes:
        """Return the attributes ``model``, ``tokenizer`` and ``device`` of the pipeline."""
        return (await self._connect()).attributes

    async def _connect(self) -> ServedEnsemble:
        if self._closed:
            raise closed_error(self.name)
        if self._ensemble is None:
            config = await self._connection.model_config(self.name)
            async with forks.no_fork():  # it imports the task
                self._ensemble = ServedEnsemble.of(self.name, config)
        return self._ensemble

    async def __call__(self, *arguments: object, **options: object) -> Any:
        """Return what ``transformers.pipeline(task)(*arguments, **options)`` returns for the served checkpoint.

        For inputs that the pipeline reads one by one (a generator, a data set), and for iterators, other iterables and a
        ``DataLoader``, that is an asynchronous generator of the answers to the items. An item of a ``DataLoader`` is a batch, whose
        answer is a list. The call takes ``batch_size`` and ``num_workers`` as the constructor does.

        The first time that the server truncates a row, the client issues a ``TruncationWarning``.

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
        answer = await self.answer_or_defer(arguments, options)
        if isinstance(answer, LazyCall):
            return self.answer_items(answer)
        return answer

    async def answer_or_defer(self, arguments: tuple[object, ...], options: Mapping[str, object]) -> Any | LazyCall:
        """Return what :meth:`__call__` returns, or the call itself where its inputs are read one by one; see :meth:`answer_items`.

        Raises:
            TypeError: As for :meth:`__call__`, and the next ones too.
            DataError: See there.
            RequestError: See there.
        """
        task = await self.connect()
        lazy = LazyCall.read(task, arguments, options, self._defaults)
        if lazy is not None:
            return lazy
        inputs, call = PipelineCall.read(task, arguments, options, self._defaults)
        rows = task.parse_inputs(inputs)
        task.check_rows(rows)
        found = await self._all_answers(rows, call.batch_size, partial(self._ask, call))
        self._warn_of_truncation(sum(truncated for _, truncated in found))
        return task.format_result(inputs, [answer for answer, _ in found], call.given)

    async def tensors(self, rows: Sequence[Sequence[str]], **options: object) -> list[Arrays]:
        """Return the ensemble's output tensors without further processing.

        Args:
            rows: The strings of each row, in the order of the ensemble's inputs: ``[["a text"], ["another text"]]``, or for pairs
                ``[["a text", "its pair"]]``.
            **options: Request parameters. Options of the construction that are request parameters hold too.

        Returns:
            For each request, its tensors by name; their first axis is the rows of the request. ``TRUNCATED`` BOOL ``[rows, 1]``
            says which rows the model did not read as a whole.

        Raises:
            TypeError: The rows are not sequences of texts.
            ValueError: A row has another number of texts than the ensemble has inputs.
            RequestError: As for :meth:`__call__`.
        """
        task = await self.connect()
        call = PipelineCall.raw(task, cast("Mapping[str, JsonValue]", options), self._defaults)
        return await self._all_answers(raw_rows(task, rows), None, partial(self._raw_answers, call))

    async def stream(self, inputs: AsyncIterable[object] | Iterable[object], **options: object) -> AsyncGenerator[Any, None]:
        """Yield the answers to any number of rows, in the order of the rows.

        Up to ``concurrency`` requests are in flight; few more rows are read than they need. An answer waits only for the
        other rows of its own request, and for its turn. If reading a row fails, the rows before it are answered first.

        Args:
            inputs: The rows, each in a form that :meth:`__call__` takes. Except for lists and asynchronous iterables, a thread
                reads them, so that reading may block.
            **options: As for :meth:`__call__`.

        Raises:
            TypeError: As for :meth:`__call__`; or the inputs are one text or one dict, and no rows.
        """
        async with contextlib.aclosing(self.stream_marked(inputs, **options)) as answers:
            async for answer, truncated in answers:
                self._warn_of_truncation(truncated)
                yield answer

    async def stream_marked(
        self, inputs: AsyncIterable[object] | Iterable[object], **options: object
    ) -> AsyncGenerator[MarkedAnswer, None]:
        """Yield the answers as :meth:`stream` does, each with whether the row was truncated. There is no warning then."""
        task = await self.connect()
        _, call = PipelineCall.read(task, ([],), options, self._defaults)
        lazy = LazyCall(inputs=inputs, call=call)
        async with (
            contextlib.aclosing(lazy.items()) as items,
            contextlib.aclosing(ItemGroups(lazy).rows(items)) as rows,
            contextlib.aclosing(self._answers(rows, call)) as answers,
        ):
            async for answer in answers:
                yield answer

    async def answer_items(self, lazy: LazyCall) -> AsyncGenerator[Any, None]:
        """Yield the answers to the items of a call whose inputs are read one by one; see :meth:`stream`."""
        groups = ItemGroups(lazy)
        async with (
            contextlib.aclosing(lazy.items()) as items,
            contextlib.aclosing(groups.rows(items)) as rows,
            contextlib.aclosing(self._answers(rows, lazy.call)) as answers,
        ):
            async for answer, truncated in answers:
                self._warn_of_truncation(truncated)
                for finished in groups.finished(answer):
                    yield finished
        for finished in groups.finished():
            yield finished

    async def stream_text(self, *arguments: object, **options: object) -> AsyncGenerator[str, None]:
        """Yield the text that continues one text or one chat, in pieces, while the server generates it.

        All pieces together are the text that a call with ``return_full_text=False`` returns. Closing the generator ends the
        generation on the server. The time limit of a request holds for each piece.

        Raises:
            TypeError: As for :meth:`__call__`; or the model does not generate text piece by piece, or there are several inputs.
            ValueError: See :meth:`__call__`.
            RequestError: See there.
        """
        task = await self.connect()
        inputs, call = PipelineCall.read(task, arguments, options, self._defaults)
        request, cleaner = generation_call.text_request(self.name, call, inputs)
        async with contextlib.aclosing(generation_call.text_pieces(self._connection, request, cleaner)) as pieces:
            async for piece in pieces:
                yield piece

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

    async def _all_answers(
        self, rows: list[RequestRow], batch_size: int | None, ask: Callable[[list[RequestRow]], Awaitable[list[T]]]
    ) -> list[T]:
        """Answer rows that are all known, with one worker per request that may be in flight."""
        size = await self._rows_of_a_request(batch_size)
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
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

    async def _rows_of_a_request(self, batch_size: int | None) -> int:
        return min(batch_size or self._batch_size, max((await self._connect()).max_batch_size, 1))

    async def _answers(self, rows: AsyncIterator[RequestRow], call: PipelineCall) -> AsyncGenerator[MarkedAnswer, None]:
        batches = streams.batches(rows, await self._rows_of_a_request(call.batch_size))
        reading: asyncio.Future[list[RequestRow] | streams.End] | None = None
        in_flight: deque[asyncio.Future[list[MarkedAnswer]]] = deque()
        free = asyncio.Semaphore(self._concurrency)

        async def read() -> list[RequestRow] | streams.End:
            await free.acquire()
            return await anext(batches, streams.END)

        try:
            while True:
                if reading is None and len(in_flight) < OVERTAKING * self._concurrency:
                    reading = asyncio.ensure_future(read())
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
                    in_flight[-1].add_done_callback(lambda _: free.release())
                    reading = None
            while in_flight:
                for answer in await in_flight.popleft():
                    yield answer
            reading.result()  # raises the exception of the rows, if there was one
        finally:
            await streams.cancel([*in_flight, *([reading] if reading is not None else [])])
            await batches.aclose()

    async def _ask(self, call: PipelineCall, rows: Sequence[RequestRow]) -> list[MarkedAnswer]:
        tensors = await self._tensors(call, rows)
        answers = call.task.add_inputs(call.task.format_answers(tensors, **call.formatting), rows, **call.formatting)
        truncated = tensors[TRUNCATED][:, 0].tolist() if TRUNCATED in tensors else [False] * len(answers)
        return list(zip(answers, truncated, strict=True))

    async def _raw_answers(self, call: PipelineCall, rows: Sequence[RequestRow]) -> list[Arrays]:
        return [await self._tensors(call, rows)]

    async def _tensors(self, call: PipelineCall, rows: Sequence[RequestRow]) -> Arrays:
        try:
            if isinstance(call.task, TextGeneration):
                request = generation_call.whole_request(self.name, call, rows)
                options = call.task.with_options(call.parameters).generation_options
                return await generation_call.whole_answer(self._connection, request, options)
            tensors, parameters = call.request(rows)
            result = await self._connection.infer(self.name, tensors, parameters, is_long=isinstance(call.task, GenerationTask))
        except InvalidArgumentError as error:
            if not any(part in error.message for part in call.task.pipeline_refusals):
                raise
            kind = PipelineError.catchable()
            raise kind(error.message, task=call.task.name, model=self.name, hint=error.hint).of_request(error.request_id) from error
        if result.get_output(DIGEST) is not None:  # a proxy may have compared and removed it
            require_own_answer(result.as_numpy(DIGEST), tensors)
        names = [tensor.name for tensor in call.task.outputs()]
        if result.get_output(TRUNCATED) is not None:  # a server may hold an ensemble that was packaged before it was an output
            names.append(TRUNCATED)
        return {name: result.as_numpy(name) for name in names}

    def _warn_of_truncation(self, rows: int) -> None:
        """Issue the warning for that many truncated rows, once. A filter that makes it an error gets it every time."""
        if rows == 0 or self._has_warned or self._ensemble is None:
            return
        length = self._ensemble.attributes.tokenizer.model_max_length
        counted = "1 row was" if rows == 1 else f"{rows} rows were"
        warnings.warn(
            f"{counted} truncated: {self.name} keeps {length} tokens of a row, and its answer does not consider the rest. "
            "stream_marked() says which rows. This client warns once",
            TruncationWarning,
            stacklevel=2,
        )
        self._has_warned = True
