"""The synchronous client: ``transformers.pipeline`` with the model on a Triton server, for the same inputs and answers.

It runs the asynchronous client on an event loop in a thread of its own. It does not use anyio's ``BlockingPortal``: a portal
blocks the caller until the loop has accepted a call, which doubles the cost of an answer and leaves a call that Ctrl-C then
cannot cancel.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast

from serving import streams
from serving.async_client import AsyncTritonPipeline, ClientOptions, EnsembleIdentity
from serving.connection import check_process, closed_error
from serving.runtime.tasks.base import ServedTask
from serving.runtime.types import Arrays

__all__ = ["AsyncTritonPipeline", "TritonPipeline"]

T = TypeVar("T")


class TritonPipeline:
    """Call a model on a Triton server as ``transformers.pipeline`` calls it in this process.

    ::

        with TritonPipeline("reviews") as pipe:
            pipe("A warm, funny film.")  # [{'label': 'positive', 'score': 0.99…}]

    Several threads may use one client at the same time. A process that is forked, such as a worker of ``DataLoader``, creates its
    own; a client of its parent raises ``RuntimeError`` there.
    """

    def __init__(self, name: str, **options: Unpack[ClientOptions]) -> None:
        """Create the client, with the arguments of :class:`AsyncTritonPipeline`, and start its thread."""
        self._pipeline = AsyncTritonPipeline(name, **options)
        self._closed = False
        self._lock = threading.Lock()
        self._process = os.getpid()
        # A forked process shares the epoll object of an ordinary loop: when it ends, it would unregister this loop's sockets.
        self._loop = asyncio.SelectorEventLoop(selectors.PollSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"TritonPipeline {name}", daemon=True)
        self._thread.start()

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

    def __call__(self, *arguments: object, **options: object) -> Any:
        """Answer the inputs; see :meth:`AsyncTritonPipeline.__call__`."""
        return self._wait(partial(self._pipeline, *arguments, **options))

    def tensors(self, rows: Sequence[Sequence[str]], **options: object) -> list[Arrays]:
        """Return the ensemble's output tensors; see :meth:`AsyncTritonPipeline.tensors`."""
        return self._wait(partial(self._pipeline.tensors, rows, **options))

    def stream(self, inputs: Iterable[object], **options: object) -> Iterator[Any]:
        """Yield the answers to any number of rows; see :meth:`AsyncTritonPipeline.stream`.

        Inputs other than a list or a tuple are read in a thread of their own, so reading them may block.
        """
        rows = streams.each(inputs) if isinstance(inputs, list | tuple) else streams.each_in_thread(inputs)
        answers = self._pipeline.stream(rows, **options)
        try:
            while (answer := self._wait(partial(anext, answers, streams.END))) is not streams.END:
                yield answer
        finally:
            if not self._closed and os.getpid() == self._process:  # otherwise close() has ended both, or the parent does
                self._wait(answers.aclose)
                self._wait(rows.aclose)

    def close(self) -> None:
        """Cancel all calls, end all streams, close the connection and end the thread. Further calls do nothing.

        Raises:
            RuntimeError: This process was forked from the one that created the client, whose connection stays open.
        """
        check_process(self._process)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ended = self._submit(self._end())
        ended.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the client. An error that leaves the block in a forked process stays as it is."""
        if error is None or os.getpid() == self._process:
            self.close()

    async def _end(self) -> None:
        await streams.cancel(asyncio.all_tasks() - {asyncio.current_task()})
        await self._loop.shutdown_asyncgens()
        await self._pipeline.close()

    def _submit(self, coroutine: Coroutine[object, None, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _wait(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await ``function()`` on the loop. If this thread is interrupted, cancel the call and wait until it has ended."""
        check_process(self._process)
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
