"""Triton's responses to requests that were not finished."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from ..failure_messages import BUSY, LATE, NOT_FINITE, NOT_RUN
from ..refusals import error_of, failure, logged_failure, refusal
from .decoding import AllForbiddenError, NotFiniteError
from .engine import QueueFullError
from .engine_request import DeadlineExceededError, GenerationCancelledError


def error_response(error: BaseException, *, cancelled: str = "") -> Any:
    """Build the response to a request that was not finished.

    Args:
        error: Why.
        cancelled: What a client is told that has cancelled.
    """
    if isinstance(error, GenerationCancelledError):
        return error_of(cancelled, pb_utils.TritonError.CANCELLED)
    if isinstance(error, QueueFullError):
        return error_of(BUSY, pb_utils.TritonError.UNAVAILABLE)
    if isinstance(error, DeadlineExceededError):
        return error_of(LATE, pb_utils.TritonError.UNAVAILABLE)
    if isinstance(error, NotFiniteError):
        return failure(NOT_FINITE)
    return refusal(str(error)) if isinstance(error, AllForbiddenError) else logged_failure(error, NOT_RUN)
