"""Leases: a running server keeps the generations that it serves from being deleted by ``package``.

A lease is a shared lock (``flock``) on the folder of the generation. It ends with the process that holds it, however that ends, and
needs no right to write into the repository.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

IN_USE = (errno.EWOULDBLOCK, errno.EACCES)


def take_lease(generation: Path) -> int | None:
    """Keep a generation from being deleted, until the descriptor that is returned is closed.

    Returns:
        The descriptor; None if the generation is gone or is being deleted.
    """
    try:
        descriptor = os.open(generation, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in IN_USE:  # somebody has locked it to delete it
            os.close(descriptor)
            return None
        # the file system has no locks: the generation cannot be held, but it can be served
    if not _is_still_there(generation, descriptor):
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def without_leases(generation: Path) -> Iterator[bool]:
    """Yield whether no server holds a generation. If none does, none can take a lease while the block runs.

    Args:
        generation: The folder of the generation.
    """
    descriptor = os.open(generation, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError as error:
        free = error.errno not in IN_USE  # without locks there are no leases
    try:
        yield free
    finally:
        os.close(descriptor)


def _is_still_there(generation: Path, descriptor: int) -> bool:
    """Return whether the folder is the one that was opened."""
    try:
        return os.path.samestat(generation.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Wait until no other process changes the entries of a repository, and keep others waiting while the block runs."""
    descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
