"""Triton's responses to requests that fail. Clients get a message, and never a traceback or a path of the server."""

from __future__ import annotations

import traceback
from typing import Any

import triton_python_backend_utils as pb_utils

NOT_PREPARED = "this request could not be prepared"
NOT_RUN = "the model could not run on this input"
NOT_ANSWERED = "the answer could not be made of what the model gave"
NOT_FINITE = "the model gave values that are not finite for this input"


def refusal(message: str) -> Any:
    """Build the response to a request that is invalid."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))


def failure(message: str) -> Any:
    """Build the response to a request that failed here."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL))


def unavailable(message: str) -> Any:
    """Build the response to a request that this model cannot answer now, but may answer later."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.UNAVAILABLE))


def logged_failure(error: BaseException, message: str) -> Any:
    """Write the traceback of an error to the log, and build the response to the request."""
    pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    return failure(message)


def refused(error: BaseException) -> Any:
    """Build the response to a request that could not be prepared.

    A ``ValueError`` is for the client. Anything else goes to the log only.
    """
    return refusal(str(error)) if isinstance(error, ValueError) else logged_failure(error, NOT_PREPARED)
