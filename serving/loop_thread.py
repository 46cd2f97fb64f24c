"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import TypeVar, TypeVarTuple, Unpack

from serving import streams

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that takes no more callbacks after its end, without an error.

    gRPC tells the loop of a cancelled call when the call has ended, which may be later than the loop. It does so from the loop of
    another client, where asyncio would print the error with its traceback.
    """

    def __init__(self) -> None:
        # A forked process shares the epoll object of an ordinary loop, and could unregister this loop's sockets there.
        super().__init__(selectors.PollSelector())

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Schedule a callback from any thread; drop it if the loop has ended."""
        if self.is_closed():
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon_threadsafe(callback, *args, context=context)


class LoopThread:
    """An event loop that runs until :meth:`end`."""

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._loop = _Loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[object, None, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the loop, which has not been ended."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def end(self, last: Callable[[], Awaitable[None]]) -> concurrent.futures.Future[None]:
        """Cancel whatever runs on the loop, await ``last()`` and end the thread.

        Returns:
            Is done when ``last()`` is.
        """
        return self.submit(self._end(last))

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    async def _end(self, last: Callable[[], Awaitable[None]]) -> None:
        try:
            await streams.cancel(asyncio.all_tasks() - {asyncio.current_task()})
            await self._loop.shutdown_asyncgens()
            await last()
        finally:
            self._loop.call_soon(self._loop.stop)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()
