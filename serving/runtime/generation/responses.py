"""Triton's responses of models that generate: how one is sent, and those to requests that were not finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import triton_python_backend_utils as pb_utils

from ..refusals import NOT_FINITE, NOT_RUN, failure, logged_failure, refusal, refused, unavailable
from .decoding import NotFiniteError
from .engine import DeadlineExceededError, GenerationCancelledError, QueueFullError

BUSY = "this model has more requests than may wait: try again later"
LATE = "the time that this request allows is over"
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Sender(Protocol):
    """The response sender of one Triton request."""

    def send(self, response: Any = ..., flags: int = ...) -> None:
        """Send a response."""
        ...


def error_response(error: BaseException, *, cancelled: str = "") -> Any:
    """Build the response to a request that was not finished.

    Args:
        error: Why.
        cancelled: What a client is told that has cancelled.
    """
    if isinstance(error, GenerationCancelledError):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(cancelled, pb_utils.TritonError.CANCELLED))
    if isinstance(error, DeadlineExceededError):
        return unavailable(LATE)
    if isinstance(error, NotFiniteError):
        return failure(NOT_FINITE)
    return refusal(str(error)) if isinstance(error, ValueError) else logged_failure(error, NOT_RUN)


def submit_each(requests: Sequence[Any], submit: Callable[[Any, Sender], None]) -> None:
    """Submit requests to an engine. One that cannot be used is answered here.

    Args:
        requests: What Triton hands to the model.
        submit: Submits one request, whose answer goes to the sender.
    """
    for request in requests:
        sender = request.get_response_sender()
        try:
            submit(request, sender)
        except (KeyboardInterrupt, SystemExit):
            raise
        except QueueFullError:
            sender.send(unavailable(BUSY), flags=FINAL)
        except BaseException as error:  # a panic of the tokenizer's Rust code is not an Exception
            sender.send(refused(error), flags=FINAL)
