"""Rows on their way to requests, from an iterable that may block, one at a time or in batches.

anyio's worker threads do not serve here: Python waits for them when it exits, and a thread that reads rows may wait for a
line of standard input that never comes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from enum import Enum
from queue import SimpleQueue
from typing import Any, Final, TypeVar


class End(Enum):
    """The type of :data:`END`."""

    END = "end"


END: Final = End.END
"""Stands for a row, batch or answer when there are no more."""
T = TypeVar("T")


async def each(rows: Iterable[T]) -> AsyncGenerator[T, None]:
    """Yield each row of an iterable that does not block."""
    for row in rows:
        yield row


async def each_in_thread(rows: Iterable[T]) -> AsyncGenerator[T, None]:
    """Yield each row of an iterable that may block. A thread reads a row only when it is asked for."""
    requested: SimpleQueue[Future[T | End] | None] = SimpleQueue()
    threading.Thread(target=_read, args=(rows, requested), name="TritonPipeline rows", daemon=True).start()
    try:
        while True:
            future: Future[T | End] = Future()
            requested.put(future)
            row = await asyncio.wrap_future(future)
            if row is END:
                return
            yield row
    finally:
        requested.put(None)


def _read(rows: Iterable[T], requested: SimpleQueue[Future[T | End] | None]) -> None:
    """Read a row for each future until None comes instead of one; this is the thread of :func:`each_in_thread`."""
    iterator: Iterator[T] | None = None
    while (future := requested.get()) is not None:
        if future.set_running_or_notify_cancel():
            try:
                if iterator is None:
                    iterator = iter(rows)
                future.set_result(next(iterator, END))
            except Exception as error:  # any error of the iterable belongs to the reader of the row
                future.set_exception(error)
            except BaseException as error:  # it would end the loop of the reader, who would wait for ever
                future.set_exception(RuntimeError(f"reading the inputs ended with {type(error).__name__}: {error}"))


async def batches(rows: AsyncIterator[T], size: int) -> AsyncGenerator[list[T], None]:
    """Yield ``size`` rows at a time; the last batch may be smaller."""
    batch: list[T] = []
    async for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def cancel(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel the futures and wait until all have ended. Their exceptions are dropped, because their results are not needed."""
    remaining = list(futures)
    for future in remaining:
        future.cancel()
    await asyncio.gather(*remaining, return_exceptions=True)
