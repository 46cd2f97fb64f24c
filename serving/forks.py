"""What a fork of this process does to its clients: both processes go on with them, each over a connection of its own.

A child inherits copies of its parent's connections, but not the threads that serve them, and gRPC crashes in a child if it was
running in the parent. So gRPC is closed before every fork and opened again after it. A request that is in flight meanwhile is sent
again: inference has no side effects. Whatever else a child inherits it leaves alone, and it connects when it first asks.

Python calls these functions for ``os.fork``, ``multiprocessing`` and the workers of a torch ``DataLoader``. It does not for
``subprocess``, whose child runs another program at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # so that its lock is taken after the functions registered below have run
import contextlib
import ctypes
import gc
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

CLOSING_SECONDS = 4.0
"""How long a fork waits until gRPC has ended. That takes milliseconds, or as long as an attempt to connect that nobody answers."""
PAUSE = 0.001
GRPC_THREADS = ("event_engine", "lifeguard", "grpc_", "timer_manager")
"""Beginnings of the names of gRPC's own threads."""
_TASKS = Path("/proc/self/task")


class ForkMember(Protocol):
    """An object that a fork concerns."""

    def before_fork(self) -> concurrent.futures.Future[None] | None:
        """Close what a child cannot inherit. The future, if there is one, is done when that has happened."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent. No other thread runs yet."""
        ...


_members: WeakSet[ForkMember] = WeakSet()


class _State:
    """The state of forking in this process.

    Attributes:
        busy: Held by a fork, and by whoever wants none to happen.
        grpc_survives: Whether gRPC goes on running in the fork that happens now.
        process: The id of the process in which the last fork began.
        broken_by: The id of the process that forked this one, or an ancestor, while gRPC was running. None: gRPC works here.
    """

    busy = threading.RLock()
    grpc_survives = False
    process = os.getpid()
    broken_by: int | None = None


def register(member: ForkMember) -> None:
    """Tell an object of every fork for as long as it exists."""
    _members.add(member)


@contextlib.asynccontextmanager
async def no_fork() -> AsyncIterator[None]:
    """Let no thread fork this process meanwhile: a child could not finish an import, nor use gRPC. The block must not await."""
    while not _State.busy.acquire(blocking=False):
        await asyncio.sleep(PAUSE)
    try:
        yield
    finally:
        _State.busy.release()


def require_grpc() -> None:
    """Check that gRPC works in this process.

    Raises:
        RuntimeError: This process was forked while gRPC was running in its parent.
    """
    if _State.broken_by is not None:
        raise RuntimeError(
            f"gRPC does not work in this process: it ran in process {_State.broken_by} during the fork, because of other code, or "
            'of an AsyncTritonPipeline whose loop could not run; use protocol="http", or start processes by "spawn"'
        )


def abandon(inherited: object) -> None:
    """Never destroy an object of the parent: that would end its connections, or unregister them from an epoll object it shares."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _before() -> None:
    _State.busy.acquire()
    deadline = time.monotonic() + CLOSING_SECONDS
    closing = [future for member in list(_members) if (future := member.before_fork()) is not None]
    waiting = concurrent.futures.wait(closing, CLOSING_SECONDS).not_done
    _State.grpc_survives = bool(waiting) or not _grpc_ends(deadline) if closing else _grpc_is_running()
    _State.process = os.getpid()


def _after_in_parent() -> None:
    _State.busy.release()


def _after_in_child() -> None:
    if _State.grpc_survives:
        _State.broken_by = _State.process
    _State.busy = threading.RLock()
    for member in list(_members):
        member.after_fork_in_child()


def _grpc_ends(deadline: float) -> bool:
    """Wait until gRPC has ended, soon after the last reference to a channel. Return whether it has by ``deadline``."""
    if _grpc_ends_by(time.monotonic() + CLOSING_SECONDS / 20):
        return True
    gc.collect()  # an exception may hold the channel in a cycle
    return _grpc_ends_by(deadline)


def _grpc_ends_by(deadline: float) -> bool:
    while _grpc_is_running():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return True


def _grpc_is_running() -> bool:
    """Return whether this process has threads of gRPC."""
    names = []
    for task in _TASKS.iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            names.append((task / "comm").read_text(encoding="utf-8"))
    return any(name.startswith(GRPC_THREADS) for name in names)


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
