"""Failed requests: what Envoy writes about each, and the lines about them in the server's log.

Envoy writes one JSON object for each request that failed, refused ones included, and nothing for others. The lines name the model,
the status, the request's id and the reason. They hold no texts: what a message quotes is left out unless it is the name of a model,
a tensor, an option or a field. The same failure is written once in a while with the number and the first ids of its repetitions,
and failures of many kinds together, so that a flood of bad requests cannot fill the disk.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from serving.front.envoy_fields import EnvoyFields, type_url
from serving.reporting import plural
from serving.request_context import LONGEST_ID

MARK = "tritonize_failed_request"
"""Key of the objects that Envoy writes."""
PERIOD_SECONDS = 10.0
"""How often the same failure is written at most, in seconds."""
MOST_KINDS = 20
"""How many different failures are written in a period. Further ones are counted."""
MOST_IDS = 20
"""How many ids of repetitions of a failure, and of further failures, are written in a period."""
LONGEST_REASON = 300
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
QUOTED = re.compile(r"(?<![A-Za-z0-9])'(?:[^'\\]|\\.)*'?|\"(?:[^\"\\]|\\.)*\"?")
NAMED = re.compile(
    r"(?:^|\b(?:model|ensemble|instance|input|output|tensor|option|parameter|key|encoding|parse|of|for|or):? )$", re.IGNORECASE
)
"""What stands before a name that a message quotes: of a model, a tensor, an option or a field. A value stands after other words."""
LONGEST_KIND = len("parameter: ")
HEALTH = re.compile(
    r"/v2/health/|/v2/models/[^/]+(?:/versions/[0-9]+)?/ready$|/grpc\.health\.|/inference\.GRPCInferenceService/\w+(?:Live|Ready)$"
)
"""Paths that ask whether a server or a model is ready. That it is not is an answer, no failure."""
MODEL_PATH = re.compile(r"/v2/models/([^/?]+)")
GIVEN_UP = {"DC", "DR"}
"""Flags of requests whose client gave up: it closed the connection, or reset its stream, as gRPC does."""
ABSENT = "-"
"""What Envoy writes for a field that is not there."""


def failure_log(*, grpc_listener: bool) -> EnvoyFields:
    """Return an access log of Envoy that holds only requests that failed, on its standard output."""
    fields = {
        MARK: "%PROTOCOL%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS_NUMBER%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "reply": "%LOCAL_REPLY_BODY%",
        "model": "%DYNAMIC_METADATA(tritonize.guard:model)%",
        "reason": "%DYNAMIC_METADATA(tritonize.guard:reason)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "message_id": "%DYNAMIC_METADATA(tritonize.guard:message_id)%",
    }
    status: EnvoyFields = {
        "status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 400, "runtime_key": "front.failed_status"}}}
    }
    if grpc_listener:
        status = {"grpc_status_filter": {"exclude": True, "statuses": ["OK"]}}
    in_a_stream: EnvoyFields = {
        "metadata_filter": {
            "matcher": {
                "filter": "tritonize.guard",
                "path": [{"key": "reason"}],
                "value": {"present_match": True},
            },
            "match_if_key_not_found": False,
        }
    }
    return {
        "name": "failed_requests",
        "filter": {"or_filter": {"filters": [status, in_a_stream]}},
        "typed_config": {
            "@type": type_url("access_loggers.stream.v3.StdoutAccessLog"),
            "log_format": {"json_format": fields},
        },
    }


class Log(Protocol):
    """Writes a line, such as ``logger.warning``."""

    def __call__(self, message: str, /, *, extra: Mapping[str, object]) -> None:
        """Write a message; ``extra`` holds the model, the status and the id of the request it is about, as far as known."""
        ...


@dataclass(frozen=True, kw_only=True)
class FailedRequest:
    """What the log tells about a request that failed.

    Attributes:
        model: The model; None: it is not known. The next one, too.
        status: The status of HTTP or gRPC.
        reason: Why it failed.
        request_id: Its id; in a stream, that of the message. Failures that differ in ids alone are the same. None: it has none.
        stream_id: The header ``x-request-id`` of the stream, if the message has an id of its own.
    """

    model: str | None
    status: str | None
    reason: str
    request_id: str | None = field(default=None, compare=False)
    stream_id: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """Return it as a part of a line."""
        ids = (("request id ", self.request_id), ("stream ", self.stream_id))
        named = (("model ", self.model), ("", self.status), *ids)
        known = [f"{name}{value}" for name, value in named if value is not None]
        return f"{', '.join(known)}: {self.reason}" if known else self.reason

    @property
    def fields(self) -> dict[str, object]:
        """Return what is known, by name."""
        found = {"model": self.model, "status": self.status, "request_id": self.request_id, "stream_id": self.stream_id}
        return {name: value for name, value in found.items() if value is not None}


BROKEN = FailedRequest(model=None, status=None, reason="the proxy's line about it is broken")


@dataclass
class _Repetitions:
    """How many requests of a period have no line of their own, and their first ids."""

    times: int = 0
    ids: list[str] = field(default_factory=list)

    def add(self, failed: FailedRequest) -> None:
        self.times += 1
        if failed.request_id is not None and len(self.ids) < MOST_IDS:
            self.ids.append(failed.request_id)

    @property
    def named_ids(self) -> str:
        """Return the ids as a part of a line."""
        end = ", …" if len(self.ids) < self.times else ""
        return f"{plural(len(self.ids), 'request id')} {', '.join(self.ids)}{end}"

    @property
    def fields(self) -> dict[str, object]:
        return {"repeated_ids": self.ids} if self.ids else {}


class FailedRequests:
    """Turns the objects of :func:`failure_log` into lines of the log. Two threads may use it at the same time."""

    def __init__(self, log: Log, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without a failure.

        Args:
            log: Called with each line.
            clock: Returns the time in seconds.
        """
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = clock()
        self._repeated: dict[FailedRequest, _Repetitions] = {}
        self._unlisted = _Repetitions()

    def read(self, line: str) -> bool:
        """Read a line of Envoy. Return whether it is about a failed request."""
        if MARK not in line or not line.startswith("{"):
            return False
        with self._lock:
            self._close_period()
            failed = _read(line)
            if failed is None:
                return True
            if failed in self._repeated:
                self._repeated[failed].add(failed)
            elif len(self._repeated) < MOST_KINDS:
                self._repeated[failed] = _Repetitions()
                self._write(failed)
            else:
                self._unlisted.add(failed)
        return True

    def flush(self, *, now: bool = False) -> None:
        """Write how often failures were repeated, if the period is over.

        Args:
            now: Do it also before.
        """
        with self._lock:
            self._close_period(now=now)

    def _close_period(self, *, now: bool = False) -> None:
        if not now and self._clock() - self._begun < PERIOD_SECONDS:
            return
        seconds = self._clock() - self._begun
        for failed, repeated in self._repeated.items():
            if repeated.times:
                self._write_repetitions(failed, repeated, seconds)
        if self._unlisted.times:
            self._write_unlisted(self._unlisted, seconds)
        self._begun = self._clock()
        self._repeated.clear()
        self._unlisted = _Repetitions()

    def _write_unlisted(self, unlisted: _Repetitions, seconds: float) -> None:
        further = plural(unlisted.times, "further request")
        message = f"{unlisted.times} {further} failed in {seconds:.0f} s, for other reasons than those above"
        suffix = f" ({unlisted.named_ids})" if unlisted.ids else ""
        self._log(f"{message}{suffix}", extra={"repeated": unlisted.times, **unlisted.fields})

    def _write_repetitions(self, failed: FailedRequest, repeated: _Repetitions, seconds: float) -> None:
        ids = f", {repeated.named_ids}" if repeated.ids else ""
        self._write(failed, f" ({repeated.times} more in {seconds:.0f} s{ids})", repeated=repeated.times, **repeated.fields)

    def _write(self, failed: FailedRequest, suffix: str = "", **fields: object) -> None:
        self._log(f"request failed: {failed}{suffix}", extra={**failed.fields, **fields})


def _read(line: str) -> FailedRequest | None:
    """Read a line of Envoy, which may be broken: Envoy can end, or write to its other log, within a line."""
    try:
        return read_failure(json.loads(line))
    except (ValueError, KeyError):
        return BROKEN


def read_failure(fields: dict[str, object]) -> FailedRequest | None:
    """Return what is told about a failed request; None if the client gave up or asked for readiness."""
    path, flags = str(fields["path"]), str(fields["flags"])
    if GIVEN_UP & set(flags.split(",")) or HEALTH.search(path):
        return None
    model = _present(fields["model"])
    header_id, message_id = _id(fields["request_id"]), _id(fields["message_id"])
    if model is None and (found := MODEL_PATH.match(path)):
        model = found[1]
    reason = _present(fields["reason"]) or _present(fields["reply"]) or _present(fields["details"]) or "no reason is known"
    return FailedRequest(
        model=model if model is not None and NAME.fullmatch(model) else None,
        status=_status(fields),
        reason=without_texts(reason),
        request_id=message_id or header_id,
        stream_id=header_id if message_id else None,
    )


def _status(fields: dict[str, object]) -> str:
    number = fields["grpc_status"]
    if str(number) == "0" or (str(fields["status"]) == "200" and _present(number) is None):
        return "in a stream"
    if _present(number) is None or str(fields["path"]).startswith("/v2"):
        return f"HTTP {fields['status']}"
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    return f"gRPC {names.get(int(str(number)), number)}"


def without_texts(reason: str) -> str:
    """Return a message for clients without what it quotes, which may be their text; names of tensors, options and models stay."""
    message = _printable(_error_in(reason))
    return QUOTED.sub(lambda found: found[0] if _is_name(found) else "'…'", message)[:LONGEST_REASON]


def _is_name(quoted: re.Match[str]) -> bool:
    start = quoted.start()
    is_named = NAMED.search(quoted.string, max(0, start - LONGEST_KIND), start)
    return is_named is not None and NAME.fullmatch(quoted[0].strip("'\"")) is not None


def _error_in(reason: str) -> str:
    """Return the message of an error that is written as JSON."""
    if reason.startswith("{"):
        try:
            return str(json.loads(reason)["error"])
        except (ValueError, KeyError, TypeError):
            return reason
    return reason


def _id(value: object) -> str | None:
    found = _present(value)
    return None if found is None else _printable(found)[:LONGEST_ID]


def _present(value: object) -> str | None:
    return None if value in (None, "", ABSENT) else str(value)


def _printable(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]+", "?", text)
