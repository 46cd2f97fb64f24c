"""The synchronous client: ``transformers.pipeline`` with the model on a Triton server, for the same inputs and answers.

It runs the asynchronous client on an event loop in a thread of its own. It does not use anyio's ``BlockingPortal``: a portal
blocks the caller until the loop has accepted a call, which doubles the cost of an answer and leaves a call that Ctrl-C then
cannot cancel.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from weakref import WeakSet, finalize

from serving import forks, streams
from serving.async_client import AsyncTritonPipeline, EnsembleIdentity, MarkedAnswer
from serving.connection import closed_error
from serving.lazy_answers import LazyAnswers
from serving.loop_thread import LoopThread
from serving.pipeline_attributes import ServedDevice, ServedModel, ServedTokenizer
from serving.pipeline_call import LazyCall
from serving.runtime.tasks.base import ServedTask
from serving.runtime.types import Arrays

__all__ = ["AsyncTritonPipeline", "TritonPipeline"]

T = TypeVar("T")
_clients: WeakSet[TritonPipeline] = WeakSet()


class TritonPipeline:
    """Call a model on a Triton server as ``transformers.pipeline`` calls it in this process.

    ::

        with TritonPipeline("reviews") as pipe:
            pipe("A warm, funny film.")  # [{'label': 'positive', 'score': 0.99…}]

    Several threads may use one client at the same time. A process that is forked, such as a worker of ``DataLoader``, may use it
    too, over a connection of its own; see :mod:`serving.forks`.
    """

    def __init__(self, name: str, **options: Any) -> None:
        """Create the client, with the arguments of :class:`AsyncTritonPipeline`."""
        self._options = options
        self._pipeline = AsyncTritonPipeline(name, **options)
        self._closed = False
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._finalizer: finalize[..., TritonPipeline] | None = None
        forks.register(self)
        _clients.add(self)

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        """Pickle the arguments; see :meth:`AsyncTritonPipeline.__reduce__`."""
        return partial(type(self), self.name, **self._options), ()

    @property
    def name(self) -> str:
        """The name of the ensemble."""
        return self._pipeline.name

    @property
    def task(self) -> str:
        """The name of the ensemble's task, as in ``transformers.pipeline``."""
        return self.served_task.name

    @property
    def served_task(self) -> ServedTask:
        """The task, with the settings that it is served with."""
        return self._wait(self._pipeline.connect)

    @property
    def identity(self) -> EnsembleIdentity:
        """The name and the configuration of the ensemble; see :meth:`AsyncTritonPipeline.identity`."""
        return self._wait(self._pipeline.identity)

    @property
    def model(self) -> ServedModel:
        """Stands for the pipeline's model: it has ``config`` and ``device``."""
        return self._wait(self._pipeline.attributes).model

    @property
    def tokenizer(self) -> ServedTokenizer:
        """Stands for the pipeline's tokenizer: it has ``model_max_length`` and the special tokens."""
        return self._wait(self._pipeline.attributes).tokenizer

    @property
    def device(self) -> ServedDevice:
        """The kind of device that the model runs on, on the server."""
        return self._wait(self._pipeline.attributes).device

    def __call__(self, *arguments: object, **options: object) -> Any:
        """Answer the inputs; see :meth:`AsyncTritonPipeline.__call__`.

        Returns:
            What the pipeline returns; an iterator of the answers where the inputs are read one by one.
        """
        answer = self._wait(partial(self._pipeline.answer_or_defer, arguments, options))
        return LazyAnswers(answer.inputs, partial(self._answer_items, answer)) if isinstance(answer, LazyCall) else answer

    def predict(self, inputs: object) -> Any:
        """Call the client, under the name of a scikit-learn estimator's method, as the pipeline has it."""
        return self(inputs)

    def transform(self, inputs: object) -> Any:
        """Call the client, as :meth:`predict` does."""
        return self(inputs)

    def tensors(self, rows: Sequence[Sequence[str]], **options: object) -> list[Arrays]:
        """Return the ensemble's output tensors; see :meth:`AsyncTritonPipeline.tensors`."""
        return self._wait(partial(self._pipeline.tensors, rows, **options))

    def stream(self, inputs: Iterable[object], **options: object) -> Iterator[Any]:
        """Yield the answers to any number of rows; see :meth:`AsyncTritonPipeline.stream`.

        Raises:
            RuntimeError: The client is closed, or this process was forked after the stream began.
        """
        yield from self._until_end(self._pipeline.stream(inputs, **options))

    def stream_marked(self, inputs: Iterable[object], **options: object) -> Iterator[MarkedAnswer]:
        """Yield each answer with whether its row was truncated; see :meth:`AsyncTritonPipeline.stream_marked`."""
        yield from self._until_end(self._pipeline.stream_marked(inputs, **options))

    def stream_text(self, *arguments: object, **options: object) -> Generator[str, None, None]:
        """Yield the text that continues one text or one chat, in pieces; see :meth:`AsyncTritonPipeline.stream_text`."""
        yield from self._until_end(self._pipeline.stream_text(*arguments, **options))

    def _answer_items(self, lazy: LazyCall) -> Generator[Any, None, None]:
        yield from self._until_end(self._pipeline.answer_items(lazy))

    def _until_end(self, answers: AsyncGenerator[Any, None]) -> Generator[Any, None, None]:
        process = os.getpid()
        try:
            while (answer := self._wait(partial(anext, answers, streams.END))) is not streams.END:
                yield answer
                if os.getpid() != process:
                    raise RuntimeError(f"process {process} began this stream and forked this one: begin another stream here")
        finally:
            if not self._closed and os.getpid() == process:  # otherwise close() has ended it, or the parent does
                self._wait(answers.aclose)

    def close(self) -> None:
        """Cancel all calls, end all streams, close the connection and end the thread. Further calls do nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._forget_thread()
            ended = None if thread is None else thread.end(self._pipeline.close)
        if thread is not None and ended is not None:
            ended.result()
            thread.join()

    def after_fork_in_child(self) -> None:
        """Leave the parent's thread and its loop alone."""
        self._lock = threading.Lock()  # perhaps a thread of the parent held it
        if (thread := self._forget_thread()) is not None:
            forks.abandon(thread)

    def before_fork(self) -> None:
        """Do nothing: the connection does what is needed."""

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the client."""
        self.close()

    def _submit(self, coroutine: Coroutine[object, None, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the loop, whose thread starts with the first one. Call this with the lock held."""
        if self._thread is None:
            self._thread = LoopThread(f"TritonPipeline {self.name}")
            self._finalizer = finalize(self, self._thread.end, self._pipeline.close)  # ends the thread of a client nobody closed
            self._finalizer.atexit = False  # _close_all waits for it
        return self._thread.submit(coroutine)

    def _forget_thread(self) -> LoopThread | None:
        thread, self._thread = self._thread, None
        if self._finalizer is not None:
            self._finalizer.detach()
        return thread

    def _wait(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await ``function()`` on the loop. If this thread is interrupted, cancel the call and wait until it has ended."""
        running: list[asyncio.Task[Any]] = []
        future: concurrent.futures.Future[T] | None = None

        async def call() -> T:
            running.append(cast("asyncio.Task[Any]", asyncio.current_task()))
            return await function()

        try:
            with self._lock:  # close() cancels every call that was submitted before it; no call is submitted after it
                if self._closed:
                    raise closed_error(self._pipeline.name)
                future = self._submit(call())
            return future.result()
        except concurrent.futures.CancelledError:
            raise closed_error(self._pipeline.name) from None  # only close(), in another thread, cancels a call
        except BaseException:  # Ctrl-C reaches this thread, not the loop, and possibly before the call was submitted
            if future is not None and future.done():  # the error is that of the call itself
                raise
            with self._lock:
                ended = None if self._closed else self._submit(streams.cancel(running))
            if ended is not None:
                ended.result()
            raise


@atexit.register
def _close_all() -> None:
    """Close what nobody closed, so that the libraries below do not complain when Python exits."""
    for client in list(_clients):
        client.close()
