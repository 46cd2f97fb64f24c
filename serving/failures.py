"""What went wrong with one attempt of a request, and whether the request may be sent again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import aiohttp
import grpc
from tritonclient.utils import InferenceServerException

from serving.connection_messages import BROKEN, SAID_PLAINLY, TLS_REFUSED, UNREACHABLE
from serving.errors import InvalidArgumentError, RequestError
from serving.model_names import load_command
from serving.options import WireProtocol
from serving.request_context import REQUEST_ID_HEADER, answered_id
from serving.restricted_api import KEY_HINT, refused_key
from serving.runtime.failure_messages import STATUSES
from serving.wrong_protocol import ANSWERED_HTTP, answers_http

HTTP_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
HINTS = {
    "UNAUTHENTICATED": KEY_HINT,
    "PERMISSION_DENIED": "the server closes this to clients: call one of the models that it serves, not a step of one",
}
TOO_LARGE = re.compile(r"message larger than max \(|payload too large|http2 header with status: 413", re.IGNORECASE)
"""gRPC's messages about a request that exceeds the limit of the server, or of a proxy in front of it."""
ENDING = re.compile(r"is not ready")
"""Triton's message about a model while the server starts or ends. A model that does not exist "is not found"."""
UNLOADED = re.compile(r"Request for unknown model: '(.+)' has no available versions")
"""Triton's message about a model that was unloaded, by an operator or because the server ends."""
STUB_DIED = re.compile(r"not healthy|Stub process")
"""Triton's messages about a Python step whose process died."""

STREAMED = (
    ("UNAVAILABLE", re.compile(r"the server is (starting|restarting|stopping|busy)")),
    (
        "INTERNAL",
        re.compile(r"the model failed: |the request could not be checked|Failed to process|Stub process|TritonError|Traceback"),
    ),
    ("NOT_FOUND", re.compile(r"Request for unknown model: ")),
)
"""How messages of Triton and of the front begin in a gRPC stream, which has no status, and what their status is. Any other one is
about the content of the request, which it may repeat."""


class HttpAnswerError(Exception):
    """An HTTP answer with an error status.

    Attributes:
        status: The HTTP status.
        body: The body of the answer.
        retry_after: The header ``Retry-After``; None if the answer has none.
        request_id: The header ``x-request-id``; None if the answer has none.
    """

    def __init__(self, status: int, body: str, retry_after: str | None, request_id: str | None = None) -> None:
        """Create the error from the parts of the answer."""
        super().__init__(f"HTTP status {status}: {body}")
        self.status = status
        self.body = body
        self.retry_after = retry_after
        self.request_id = request_id


class StreamedError(InferenceServerException):  # type: ignore[misc]
    """An error message in a gRPC stream, which has no status.

    Attributes:
        request_id: The header ``x-request-id`` of the stream; None if it has none.
    """

    def __init__(self, message: str, request_id: str | bytes | None) -> None:
        """Create the error from its parts."""
        super().__init__(msg=message)
        self.request_id = request_id


class Retry(Enum):
    """Whether a request may be sent again, and why."""

    NO = "the answer would be the same"
    LATER = "the server is there and did not compute the request"
    UNLOADED = "the server ends, or an operator has unloaded the model"
    UNREACHABLE = "no connection to the server could be opened"
    BROKEN = "the connection or the step broke while the server had the request"


@dataclass(frozen=True, kw_only=True)
class AttemptFailure:
    """One failed attempt.

    Attributes:
        error: What the caller is told if there is no further attempt.
        retry: Whether the request may be sent again.
        retry_after: The server's wish for a pause in seconds; 0 if it has none.
    """

    error: RequestError
    retry: Retry = Retry.NO
    retry_after: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FailureTranslator:
    """Translates the exceptions of the clients for one server.

    Attributes:
        url: ``host:port`` of the server.
        protocol: ``grpc`` or ``http``.
        has_tls: Whether the connections have TLS.
    """

    url: str
    protocol: WireProtocol
    has_tls: bool = False

    def translate(self, error: Exception) -> AttemptFailure:
        """Translate an exception of tritonclient, aiohttp or gRPC.

        Args:
            error: ``HttpAnswerError``, ``aiohttp.ClientError``, ``InferenceServerException`` or ``grpc.aio.AioRpcError``.
        """
        failure = self._translate(error)
        failure.error.of_request(_request_id(error))
        return failure

    def _translate(self, error: Exception) -> AttemptFailure:
        match error:
            case aiohttp.ClientError():
                return self._http_connection(error)
            case HttpAnswerError(status=413):
                return _too_large()
            case HttpAnswerError():
                message = _body_message(error)
                status = HTTP_STATUSES.get(error.status, "INVALID_ARGUMENT" if error.status < 500 else "INTERNAL")
                return self._answered(status, message, seconds(error.retry_after))
            case InferenceServerException():
                status = str(error.status() or streamed_status(error.message() or "")).removeprefix("StatusCode.")
                return self._answered(status, error.message() or "", seconds(_trailing(error.__context__).get("retry-after")))
            case grpc.aio.AioRpcError():
                return self._answered(error.code().name, error.details() or "", seconds(_trailing(error).get("retry-after")))
        raise TypeError(f"no error of a client: {error!r}")

    def _answered(self, status: str, message: str, retry_after: float) -> AttemptFailure:
        """Translate a gRPC status, which may also come from the gRPC library in this process. Messages of models have their own."""
        status, message = STATUSES.get(message, status), SAID_PLAINLY.get(message, message)
        if (refused := refused_key(message, self.url)) is not None:
            return AttemptFailure(error=refused)
        if status == "UNAVAILABLE" and TLS_REFUSED.search(message):
            return AttemptFailure(error=self._no_tls(message))
        if self.protocol == "grpc" and ANSWERED_HTTP.search(message):
            return AttemptFailure(error=answers_http(self.url))
        if status == "UNAVAILABLE" and UNREACHABLE.search(message):
            closed = BROKEN.search(message) is not None
            return AttemptFailure(error=self.closed() if closed else self._unreachable(), retry=Retry.UNREACHABLE)
        if status in {"RESOURCE_EXHAUSTED", "UNKNOWN"} and TOO_LARGE.search(message):
            return _too_large()
        retry = _retry(status, message)
        if retry is not Retry.NO and status not in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}:
            status = "UNAVAILABLE"  # Triton says NOT_FOUND or INTERNAL of what is there again after its restart
        if (found := UNLOADED.search(message)) is not None:
            error = self._not_loaded(found[1], status)
        else:
            error = RequestError.of(message, status=status, hint=HINTS.get(status, ""))
        return AttemptFailure(error=error, retry=retry, retry_after=retry_after)

    def _not_loaded(self, model: str, status: str) -> RequestError:
        hint = f"if it was unloaded, load it with: {load_command(model)}"
        return RequestError.of(f"{model} is not loaded at {self.url}", status=status, hint=hint)

    def _http_connection(self, error: aiohttp.ClientError) -> AttemptFailure:
        match error:
            case aiohttp.ClientSSLError():
                return AttemptFailure(error=self._no_tls(str(error)))
            case aiohttp.ClientOSError() if TLS_REFUSED.search(str(error)):
                return AttemptFailure(error=self._no_tls(str(error)))
            case aiohttp.ClientConnectorError():
                return AttemptFailure(error=self._unreachable(), retry=Retry.UNREACHABLE)
            case aiohttp.InvalidURL():
                return AttemptFailure(error=bad_url(self.url))
            case aiohttp.ClientResponseError():
                message = f"the server at {self.url} does not answer like Triton: {error.message}"
                hint = "check the port: HTTP is 8000 by default"
                return AttemptFailure(error=RequestError(message, status="UNKNOWN", hint=hint))
        message = f"{self.url} closed the connection before it answered: {str(error) or type(error).__name__}"
        hint = f"see the log of the server{'; it may want another certificate of this client' if self.has_tls else ''}"
        return AttemptFailure(error=RequestError(message, status="UNAVAILABLE", hint=hint), retry=Retry.BROKEN)

    def _no_tls(self, found: str) -> RequestError:
        return RequestError(
            f"no TLS connection to {self.url}: {found}",
            status="FAILED_PRECONDITION",
            hint="server and client must trust each other's certificates: see ssl, ca, certificate and key (--tls, --tls-ca, …)",
        )

    def closed(self) -> RequestError:
        """Return the error of a port that closes every connection at once."""
        return RequestError(
            f"{self.url} closes every connection at once ({self.protocol})",
            status="UNAVAILABLE",
            hint="the server may want TLS, or a certificate of the client that its authority has signed",
        )

    def _unreachable(self) -> RequestError:
        return RequestError(
            f"no Triton server answers at {self.url} ({self.protocol})",
            status="UNAVAILABLE",
            hint="start one with: tritonize serve",
        )


def _too_large() -> AttemptFailure:
    """Return the failure of a request that will never be accepted; gRPC's RESOURCE_EXHAUSTED would say that it may be later."""
    hint = "send fewer rows in a request (batch_size), or shorter texts"
    return AttemptFailure(error=InvalidArgumentError("the request is larger than the server accepts", hint=hint))


def _retry(status: str, message: str) -> Retry:
    """Decide whether a request with such an answer may be sent again. Inference has no side effects."""
    match status:
        case "UNAVAILABLE" | "CANCELLED" | "UNKNOWN" | "INTERNAL" if BROKEN.search(message):
            return Retry.BROKEN
        case "UNAVAILABLE" | "NOT_FOUND" | "INVALID_ARGUMENT" if UNLOADED.search(message):
            return Retry.UNLOADED
        case "UNAVAILABLE" | "RESOURCE_EXHAUSTED":
            return Retry.LATER
        case "NOT_FOUND" | "INVALID_ARGUMENT" if ENDING.search(message):
            return Retry.LATER
        case "INTERNAL" if STUB_DIED.search(message):
            return Retry.BROKEN
    return Retry.NO


def streamed_status(message: str) -> str:
    """Return the status of an error in a gRPC stream, which has only a message."""
    found = (status for status, pattern in STREAMED if pattern.match(message))
    return STATUSES.get(message) or next(found, InvalidArgumentError.status)


def _body_message(error: HttpAnswerError) -> str:
    """Return what the body says: Triton's JSON has it in ``error``; a proxy may answer with plain text."""
    try:
        return str(json.loads(error.body)["error"])
    except (ValueError, KeyError, TypeError):
        text = " ".join(error.body.split())
        return f"HTTP status {error.status}" + (f": {text:.200}" if text else "")


def _trailing(error: BaseException | None) -> Mapping[str, str | bytes]:
    """Return the metadata that ended a gRPC call, by key."""
    return dict(error.trailing_metadata() or ()) if isinstance(error, grpc.aio.AioRpcError) else {}


def _request_id(error: Exception) -> str | None:
    """Return the id of the request that the server has answered with an error; None if it says none."""
    match error:
        case HttpAnswerError() | StreamedError():
            return answered_id(error.request_id)
        case InferenceServerException():
            return _request_id(error.__context__) if isinstance(error.__context__, grpc.aio.AioRpcError) else None
        case grpc.aio.AioRpcError():  # a call that only fails has trailers alone
            headers = dict(error.initial_metadata() or ())
            return answered_id(headers.get(REQUEST_ID_HEADER) or _trailing(error).get(REQUEST_ID_HEADER))
    return None


def seconds(retry_after: str | bytes | None) -> float:
    """Return a ``Retry-After`` in seconds; 0 if there is none, or if it is a date."""
    text = retry_after.decode("latin-1") if isinstance(retry_after, bytes) else retry_after or ""
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text.strip()) else 0.0


def bad_url(url: str) -> RequestError:
    """Return the error of an address that is none."""
    return RequestError(
        f"{url!r} is not host:port", status="INVALID_ARGUMENT", hint="write it like 127.0.0.1:8001, without http://"
    )
