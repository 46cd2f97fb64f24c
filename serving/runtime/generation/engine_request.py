"""What the engine computes for one client, and why it may end before it is finished."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..types import Integers
from .decoding import Decoding

LOGGER = logging.getLogger(__name__)


class DeadlineExceededError(Exception):
    """The time that the client gives its request is over."""


class GenerationCancelledError(Exception):
    """The client has cancelled its request, or the engine is closed."""


class Addressee(Protocol):
    """Whoever waits for the answer to a request. The rows of one request may share it."""

    @property
    def is_gone(self) -> bool:
        """Return whether nobody waits any more, as far as is known."""
        ...

    def ask(self) -> None:
        """Find out whether somebody still waits. It may take a while."""
        ...


class _Patient:
    """Waits for ever."""

    is_gone = False

    def ask(self) -> None:
        """Find out nothing."""


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """What the engine computes for one client.

    Attributes:
        prompt: INT64 ``[length]``, one token or more.
        decoding: Chooses the tokens, and keeps them.
        on_end: Is called once, in the engine's thread. None: the decoding has finished. Else why it has not:
            :class:`GenerationCancelledError`, :class:`DeadlineExceededError`, or an exception that this request has caused.
        recipient: Whoever waits for the answer.
        deadline: Time at which the request is given up, as :func:`time.monotonic` counts; None: never.
        source: INT64 ``[source]``, what the encoder reads, if there is one.
        submitted: Time at which it was made, as :func:`time.monotonic` counts.
    """

    prompt: Integers
    decoding: Decoding
    on_end: Callable[[BaseException | None], None]
    recipient: Addressee = field(default_factory=_Patient)
    deadline: float | None = None
    source: Integers | None = None
    submitted: float = field(default_factory=time.monotonic)

    def obstacle(self, now: float) -> Exception | None:
        """Return why the request is not worth going on, or None.

        Args:
            now: The time, as :func:`time.monotonic` counts.
        """
        if self.deadline is not None and now >= self.deadline:
            return DeadlineExceededError()
        return GenerationCancelledError() if self.recipient.is_gone else None

    def end(self, why: BaseException | None) -> None:
        """Call :attr:`on_end`. What goes wrong there concerns this request alone, so it only goes to the log."""
        try:
            self.on_end(why)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the tokenizer's Rust code is not an Exception
            LOGGER.error("the end of a request could not be told", exc_info=error)
