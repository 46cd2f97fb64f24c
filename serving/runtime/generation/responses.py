"""Triton's responses of models that generate: how one is sent, and those to requests that were not finished."""

from __future__ import annotations

from typing import Any, Protocol

import triton_python_backend_utils as pb_utils

from ..refusals import NOT_FINITE, NOT_RUN, failure, logged_failure, refusal, unavailable
from .decoding import NotFiniteError
from .engine import DeadlineExceededError, GenerationCancelledError

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
