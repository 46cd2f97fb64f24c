"""Triton's responses to requests that fail. Clients get a message, and never a traceback or a path of the server."""

from __future__ import annotations

import traceback
from typing import Any

import triton_python_backend_utils as pb_utils

from .failure_messages import NOT_PREPARED

LONGEST_MESSAGE = 2000
"""Characters of the longest message: it may repeat what a client has sent."""


def refusal(message: str) -> Any:
    """Build the response to a request that is invalid."""
    return error_of(message, pb_utils.TritonError.INVALID_ARG)


def failure(message: str) -> Any:
    """Build the response to a request that failed here."""
    return error_of(message, pb_utils.TritonError.INTERNAL)


def error_of(message: str, code: Any) -> Any:
    """Build a response that is an error. Triton's module takes no half of a surrogate pair: it is written as its escape sequence.

    Args:
        message: What the client is told.
        code: One of the codes of ``TritonError``.
    """
    shown = message[:LONGEST_MESSAGE].encode("utf-8", "backslashreplace").decode()
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(shown, code))


def logged_failure(error: BaseException, message: str) -> Any:
    """Write the traceback of an error to the log, and build the response to the request."""
    pb_utils.Logger.log_error("".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").decode())
    return failure(message)


def refused(error: BaseException) -> Any:
    """Build the response to a request that could not be prepared.

    A ``ValueError`` is for the client. Anything else goes to the log only.
    """
    return refusal(str(error)) if isinstance(error, ValueError) else logged_failure(error, NOT_PREPARED)
