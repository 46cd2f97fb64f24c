"""Errors in a gRPC stream have only a message: the client finds their status."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from serving import failures
from serving.errors import InvalidArgumentError, RequestError
from serving.failures import FailureTranslator, Retry

RUNTIME = Path(failures.__file__).parent / "runtime"


def constants(path: str) -> dict[str, str]:
    """The messages of a module that only Triton can import."""
    return dict(re.findall(r'^([A-Z_]+) = "(.+)"$', (RUNTIME / path).read_text(encoding="utf-8"), re.MULTILINE))


REFUSALS = constants("refusals.py")


@pytest.mark.parametrize(
    ("message", "status", "retry"),
    [
        *((REFUSALS[name], "INTERNAL", Retry.NO) for name in ("NOT_PREPARED", "NOT_RUN", "NOT_ANSWERED", "NOT_FINITE")),
        (constants("generation/responses.py")["BUSY"], "UNAVAILABLE", Retry.LATER),
        (constants("generation/responses.py")["LATE"], "UNAVAILABLE", Retry.LATER),
        ("Request for unknown model: 'x' is not found", "NOT_FOUND", Retry.NO),
        ("Request for unknown model: 'x' has no available versions", "UNAVAILABLE", Retry.LATER),
        ("Stub process 'x' is not healthy.", "UNAVAILABLE", Retry.BROKEN),
        ("the model failed: the server's log tells why", "INTERNAL", Retry.NO),
        ("the server is restarting: try again", "UNAVAILABLE", Retry.LATER),
        ("the server is starting, restarting or stopping", "UNAVAILABLE", Retry.LATER),
        ("option top_k must be a whole number, not 'many'", "INVALID_ARGUMENT", Retry.NO),
    ],
)
def test_the_status_follows_from_the_message(message: str, status: str, retry: Retry) -> None:
    found = FailureTranslator(url="here:1", protocol="grpc").translate(InferenceServerException(msg=message))
    assert (found.error.status, found.retry) == (status, retry)
    assert found.error.message == message
    assert isinstance(found.error, InvalidArgumentError if status == "INVALID_ARGUMENT" else RequestError)
