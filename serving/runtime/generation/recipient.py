"""Whoever waits for the answer to one request, as Triton knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import triton_python_backend_utils as pb_utils

from ..failure_messages import NOT_ANSWERED, NOT_RUN
from ..refusals import failure, logged_failure

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Sender(Protocol):
    """The response sender of one Triton request."""

    def send(self, response: Any = ..., flags: int = ...) -> None:
        """Send a response."""
        ...

    def is_cancelled(self) -> bool:
        """Ask Triton whether the client has left."""
        ...


class Recipient:
    """Sends the answer to one request, and asks whether its client has left.

    Only one thread at a time calls :meth:`send` and :meth:`ask`: Triton forgets a request with its last response, and must not be
    asked about it afterwards. Whatever goes wrong here concerns this request alone.

    Args:
        sender: Triton's, for this request.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._has_left = self._has_ended = False

    @property
    def is_gone(self) -> bool:
        """Return whether nobody waits any more, as far as is known: the client has left, or has its last response."""
        return self._has_left or self._has_ended

    def ask(self) -> None:
        """Ask Triton whether the client has left. It is a message to tritonserver, and this process waits for the answer."""
        if self.is_gone:
            return
        try:
            self._has_left = bool(self._sender.is_cancelled())
        except Exception as error:
            self._lose(error)

    def send(self, make: Callable[[], Any], *, is_last: bool) -> None:
        """Send a response; after the last one, nothing.

        Args:
            make: Builds the response. If it cannot be built, the client is told so, and gets no other.
            is_last: Whether it is the last one.
        """
        if self._has_ended:
            return
        try:
            response = make()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the tokenizer's Rust code is not an Exception
            response, is_last = logged_failure(error, NOT_ANSWERED), True
        self._has_ended = is_last
        try:
            self._sender.send(response, flags=FINAL if is_last else 0)
        except Exception as error:
            self._lose(error)
            self.send(lambda: failure(NOT_RUN), is_last=True)  # nothing, if this was the last one

    def _lose(self, error: Exception) -> None:
        """Note that Triton does not know the request any more."""
        self._has_left = True
        logged_failure(error, NOT_RUN)
