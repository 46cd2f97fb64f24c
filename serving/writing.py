"""Errors of a full or failing disk, with the name of what could not be written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of writing to a file that is open. The system does not say which file it was."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add ``path`` to an error of the disk in the block that names no file.

    Args:
        path: The file or folder that the block writes.

    Raises:
        OSError: The disk is full or fails; ``filename`` is ``path``, unless the error names a file itself.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def describe(error: OSError) -> str:
    """Return one line that says what failed, on which file, and for an error of the disk what to do next."""
    reason = error.strerror or str(error)
    if error.errno not in DISK_ERRORS:
        return f"{os.fspath(error.filename)} {reason}" if error.filename else reason
    place = os.fspath(error.filename) if error.filename else "standard output or a temporary file"
    return f"cannot write {place}: {reason} (free space on its disk, and run the same command again)"
