"""The reporting channel: progress lines and warnings, as records of the ``tritonize`` logger.

Results go to standard output and are not reported here. Only the programs of this project configure the logger; code that
imports its functions sees ordinary records of :mod:`logging`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("tritonize")


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

    On a terminal rich renders them. Elsewhere, as in a log file, each message is one plain line that is never wrapped. In a
    distributed run only the main process writes.
    """
    handler = _StderrHandler()
    handler.addFilter(lambda _: is_main_process())
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


class _StderrHandler(logging.Handler):
    """Loads rich only when there is a message to show on a terminal: ``--help`` stays instant."""

    @functools.cached_property
    def _handler(self) -> logging.Handler:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        if sys.stderr.isatty():
            from rich.highlighter import NullHighlighter
            from rich.logging import RichHandler

            handler = RichHandler(
                console=console(), highlighter=NullHighlighter(), show_time=False, show_level=False, show_path=False
            )
        handler.setFormatter(_LevelFormatter())
        return handler

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        self._handler.emit(record)


class _LevelFormatter(logging.Formatter):
    """Puts the level in front of warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, such as ``warning: 3 rows are truncated``."""
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"
