"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from serving import streams

T = TypeVar("T")


class LoopThread:
    """An event loop that runs until :meth:`end`."""

    def __init__(self, name: str) -> None:
        """Start the thread."""
        # A forked process shares the epoll object of an ordinary loop, and could unregister this loop's sockets there.
        self._loop = asyncio.SelectorEventLoop(selectors.PollSelector())
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[object, None, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the loop."""
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
