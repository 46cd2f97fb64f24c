"""Failures that do not keep the rest of a work from being done: they are noted, and told at its end."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from serving.errors import NoServerError, TritonizeError, first_line
from serving.reporting import logger


class Trouble:
    """What failed in several blocks of code. It is true if something did."""

    def __init__(self) -> None:
        """Begin without a failure."""
        self._errors: list[Exception] = []

    def __bool__(self) -> bool:
        """Return whether something failed."""
        return bool(self._errors)

    def __str__(self) -> str:
        """Return the messages of all failures."""
        return "; ".join(map(_told, self._errors))

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note why the block failed, and go on. The log gets the traceback of an error that nobody expects."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, (TritonizeError, OSError)):
                logger.critical(traceback.format_exc())
            self._errors.append(error)

    @property
    def has_no_server(self) -> bool:
        """Whether all that failed is that nothing answers at the address of the server."""
        return bool(self._errors) and all(isinstance(error, NoServerError) for error in self._errors)


def _told(error: Exception) -> str:
    is_expected = isinstance(error, (TritonizeError, OSError))
    return first_line(error) if is_expected else f"{type(error).__name__}: {first_line(error)}"
