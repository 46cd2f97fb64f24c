"""A full disk."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def full_disk(size: int = 20_000) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, which is what a library sees of a disk that is full: a failing write.

    Not a fixture: pytest's own output, which may go to a file that is longer by now, comes before fixtures end.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
