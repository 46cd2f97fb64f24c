"""Rows on their way to requests: from a list or from whatever blocks, one by one or in batches."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

END: Any = object()
"""What stands for a row, batch or answer where there are no more."""
T = TypeVar("T")


async def each(rows: Iterable[T]) -> AsyncGenerator[T, None]:
    """Each of rows that are at hand."""
    for row in rows:
        yield row


async def each_in_thread(rows: Iterable[T]) -> AsyncGenerator[T, None]:
    """Each row of an iterable that may block, read when it is asked for.

    Not in a thread of asyncio's pool: Python waits for those when it exits, and this may wait for a line nobody will type.
    """
    loop = asyncio.get_running_loop()
    wanted: SimpleQueue[asyncio.Future[T] | None] = SimpleQueue()
    threading.Thread(target=_read, args=(iter(rows), wanted, loop), name="TritonPipeline rows", daemon=True).start()
    try:
        while True:
            future: asyncio.Future[T] = loop.create_future()
            wanted.put(future)
            row = await future
            if row is END:
                return
            yield row
    finally:
        wanted.put(None)


def _read(rows: Iterator[T], wanted: SimpleQueue[asyncio.Future[T] | None], loop: asyncio.AbstractEventLoop) -> None:
    """The thread of :func:`each_in_thread`: a row for each future, until there is None."""
    while (future := wanted.get()) is not None:
        row, error = END, None
        try:
            row = next(rows, END)
        except Exception as failure:  # whatever it is, it is for whoever asked for the row
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(_settle, future, row, error)


def _settle(future: asyncio.Future[T], row: T, error: Exception | None) -> None:
    if future.done():  # cancelled: the stream was given up
        return
    if error is None:
        future.set_result(row)
    else:
        future.set_exception(error)


async def batches(rows: AsyncIterator[T], size: int) -> AsyncGenerator[list[T], None]:
    """``size`` rows at a time; the last may be fewer."""
    batch: list[T] = []
    async for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def cancel(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel them and wait until they have ended. What they raise is of no account any more: their caller has its answer."""
    left = list(futures)
    for future in left:
        future.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def close(*generators: AsyncGenerator[Any, None]) -> None:
    """Close them, the first one first."""
    for generator in generators:
        await generator.aclose()
