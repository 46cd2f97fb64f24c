"""What a caller says about its requests: their id, and the trace that they belong to. Clients send it in headers.

It holds for a block of code and the coroutines that it starts. Without a trace, requests belong to the current span of
OpenTelemetry, if the program uses that.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

REQUEST_ID_HEADER = "x-request-id"
LONGEST_ID = 128
"""Longest id of a request, in characters. The front cuts off the rest of a longer one."""
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, kw_only=True)
class RequestContext:
    """What a caller says about its requests.

    Attributes:
        request_id: Id of the request; None: it has none.
        traceparent: The span that the request belongs to, as W3C's Trace Context writes it; None: the current one of OpenTelemetry.
        tracestate: What vendors add to it.
    """

    request_id: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers of a request."""
        found = {REQUEST_ID_HEADER: self.request_id, "traceparent": self.traceparent, "tracestate": self.tracestate}
        own = {name: value for name, value in found.items() if value is not None}
        return own if self.traceparent is not None else _open_telemetry_headers() | own


_NOTHING = RequestContext()
_current: ContextVar[RequestContext] = ContextVar("tritonize_request", default=_NOTHING)


def current_request() -> RequestContext:
    """Return what holds here."""
    return _current.get()


@contextlib.contextmanager
def request_context(
    *, request_id: str | None = None, traceparent: str | None = None, tracestate: str | None = None
) -> Iterator[None]:
    """Send an id or a trace with all requests of the block.

    Blocks may stand in each other; the inner one replaces what it gives.

    Args:
        request_id: Id of the requests: the header ``x-request-id`` and the id of Triton. The server's log has it. A request
            without one gets one from the server: :attr:`serving.errors.RequestError.request_id` names it.
        traceparent: The span that the requests belong to, such as ``00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01``.
        tracestate: What vendors add to it. It goes with ``traceparent``.

    Raises:
        TypeError: One of them is no string.
        ValueError: One of them cannot be sent.
    """
    for name, value in (("request_id", request_id), ("traceparent", traceparent), ("tracestate", tracestate)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    if request_id is not None and not (0 < len(request_id) <= LONGEST_ID and _is_header(request_id)):
        raise ValueError(f"request_id must be 1 to {LONGEST_ID} printable ASCII characters without spaces around it")
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        raise ValueError("traceparent must be as W3C's Trace Context writes it, such as 00-<32 hex digits>-<16 hex digits>-01")
    if tracestate is not None and (traceparent is None or not _is_header(tracestate)):
        raise ValueError("tracestate must be printable ASCII, and goes with traceparent")
    given = RequestContext(request_id=request_id, traceparent=traceparent, tracestate=tracestate)
    if traceparent is None:
        given = replace(given, traceparent=_current.get().traceparent, tracestate=_current.get().tracestate)
    if request_id is None:
        given = replace(given, request_id=_current.get().request_id)
    token = _current.set(given)
    try:
        yield
    finally:
        _current.reset(token)


def answered_id(value: str | bytes | None) -> str | None:
    """Return the id in the header of an answer; None if there is none, or one that cannot be shown."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value or ""
    return text if 0 < len(text) <= LONGEST_ID and _is_header(text) else None


def _is_header(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()


def _open_telemetry_headers() -> dict[str, str]:
    """Return the headers for the current span of OpenTelemetry; none if the program does not use it, or has no span here."""
    open_telemetry = sys.modules.get("opentelemetry.trace")
    if open_telemetry is None:
        return {}
    context = open_telemetry.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    headers = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}
    state = context.trace_state.to_header()
    return headers | {"tracestate": state} if state else headers
