"""Triton leaves the status out of the errors in gRPC streams and of those of generate: the client finds it by the message."""

from __future__ import annotations

import json

import pytest
from tritonclient.utils import InferenceServerException

from serving.errors import InvalidArgumentError, RequestError
from serving.failures import FailureTranslator, HttpAnswerError, Retry
from serving.runtime.failure_messages import BUSY, LATE, NOT_ANSWERED, NOT_FINITE, NOT_PREPARED, NOT_RUN, STATUSES

OF_MODELS = [
    *((message, "INTERNAL", Retry.NO) for message in (NOT_PREPARED, NOT_RUN, NOT_ANSWERED, NOT_FINITE)),
    (BUSY, "UNAVAILABLE", Retry.LATER),
    (LATE, "DEADLINE_EXCEEDED", Retry.NO),
]
OF_CLIENTS = [f"option stop_sequence {message!r} has no tokens" for message in (*STATUSES, "the server is busy", "Traceback")]
"""Refusals that repeat what a client has sent."""


@pytest.mark.parametrize(
    ("message", "status", "retry"),
    [
        *OF_MODELS,
        ("Request for unknown model: 'x' is not found", "NOT_FOUND", Retry.NO),
        ("Request for unknown model: 'x' has no available versions", "UNAVAILABLE", Retry.UNLOADED),
        ("Stub process 'x' is not healthy.", "UNAVAILABLE", Retry.BROKEN),
        ("Failed to process the request(s) for model 'x', message: ValueError: x", "INTERNAL", Retry.NO),
        ("the model failed: the server's log tells why", "INTERNAL", Retry.NO),
        ("the server is restarting: try again", "UNAVAILABLE", Retry.LATER),
        ("the server is starting, restarting or stopping", "UNAVAILABLE", Retry.LATER),
        ("the server is busy: its memory is full", "UNAVAILABLE", Retry.LATER),
        ("option top_k must be a whole number, not 'many'", "INVALID_ARGUMENT", Retry.NO),
        *((message, "INVALID_ARGUMENT", Retry.NO) for message in OF_CLIENTS),
    ],
)
def test_the_status_follows_from_the_message(message: str, status: str, retry: Retry) -> None:
    found = FailureTranslator(url="here:1", protocol="grpc").translate(InferenceServerException(msg=message))
    assert (found.error.status, found.retry) == (status, retry)
    assert found.error.message == ("x is not loaded at here:1" if retry is Retry.UNLOADED else message)
    assert isinstance(found.error, InvalidArgumentError if status == "INVALID_ARGUMENT" else RequestError)


@pytest.mark.parametrize(("message", "status", "retry"), OF_MODELS)
def test_the_message_of_a_model_says_more_than_tritons_status(message: str, status: str, retry: Retry) -> None:
    """Triton's Python backend has no DEADLINE_EXCEEDED: without the front, a late request is UNAVAILABLE there."""
    error = InferenceServerException(msg=message, status="StatusCode.UNAVAILABLE")
    found = FailureTranslator(url="here:1", protocol="grpc").translate(error)
    assert (found.error.status, found.retry, found.error.message) == (status, retry, message)


@pytest.mark.parametrize("code", [400, 503])
@pytest.mark.parametrize(("message", "status", "retry"), OF_MODELS)
def test_triton_gives_errors_of_models_the_status_of_a_refusal(message: str, status: str, retry: Retry, code: int) -> None:
    """Without the front, as 400; the front makes that 500, 503 and 504."""
    found = FailureTranslator(url="here:1", protocol="http").translate(HttpAnswerError(code, json.dumps({"error": message}), "1"))
    assert (found.error.status, found.retry, found.retry_after) == (status, retry, 1.0)
    assert not isinstance(found.error, InvalidArgumentError)


@pytest.mark.parametrize("message", OF_CLIENTS)
def test_the_words_of_a_client_have_no_status(message: str) -> None:
    found = FailureTranslator(url="here:1", protocol="http").translate(HttpAnswerError(400, json.dumps({"error": message}), None))
    assert isinstance(found.error, InvalidArgumentError) and found.retry is Retry.NO
