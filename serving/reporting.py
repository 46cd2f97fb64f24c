"""The reporting channel: progress lines and warnings, as records of the ``tritonize`` logger.

Results go to standard output and are not reported here. Only the programs of this project configure the logger; code that
imports its functions sees ordinary records of :mod:`logging`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("tritonize")
KEPT_LOGS = 3
"""How many full logs are kept beside the one that is written."""


def is_main_process() -> bool:
    """Return whether this is the main process of a distributed run, as ``torchrun`` and ``accelerate launch`` number them."""
    return int(os.environ.get("RANK", "0")) == 0


@functools.cache
def console() -> Console:
    """Return the console on standard error. Progress bars must use it too, so that messages appear above them."""
    from rich.console import Console

    return Console(stderr=True, force_terminal=sys.stderr.isatty())  # FORCE_COLOR would make a log file a terminal


@contextlib.contextmanager
def report_to_stderr() -> Iterator[None]:
    """Write the logger's records to standard error inside the block.

    Each message is one line that is never wrapped; on a terminal it appears above a progress bar. In a distributed run only the
    main process writes.
    """
    handler = _StderrHandler(sys.stderr)
    handler.addFilter(lambda _: is_main_process())
    handler.setFormatter(_LevelFormatter())
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library may have given the root logger a handler on standard error
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def plural(count: int, one: str, several: str = "") -> str:
    """Return the words that fit a number: ``one`` for 1, otherwise ``several``, by default ``one`` with an s."""
    return one if count == 1 else several or f"{one}s"


class LogLimit(logging.Handler):
    """Keeps the file that standard error is appended to small: a full file becomes the previous one, and a new one begins.

    A rotating handler of :mod:`logging` would not do: the file also receives what Python itself and libraries write.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Watch a file.

        Args:
            path: The file.
            max_bytes: Size at which a new one begins.
        """
        super().__init__()
        self._path = path
        self._max_bytes = max_bytes

    def emit(self, _: logging.LogRecord) -> None:
        """Begin a new file if this one is full."""
        descriptor = sys.stderr.fileno()
        if os.fstat(descriptor).st_size > self._max_bytes:
            for number in range(KEPT_LOGS - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    previous_log(self._path, number).replace(previous_log(self._path, number + 1))
            shutil.copyfile(self._path, previous_log(self._path, 1))
            os.ftruncate(descriptor, 0)


def previous_log(path: Path, number: int) -> Path:
    """Return where the previous part of a log is; 1 is the last one."""
    return path.with_name(f"{path.name}.{number}")


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Prints through rich on a terminal, so that messages appear above progress bars. Long lines stay whole, to be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        if self.stream.isatty():
            console().print(self.format(record), markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            super().emit(record)


class _LevelFormatter(logging.Formatter):
    """Puts the level in front of warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, such as ``warning: 3 rows are truncated``."""
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"
