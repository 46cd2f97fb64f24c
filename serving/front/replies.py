"""The answers that the proxy gives itself, and who may send requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from serving.front.envoy_fields import JSON_TYPE, EnvoyFields, json_error, overwritten
from serving.front.front_plan import FrontPlan

RETRY_AFTER = ("retry-after", "1")
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE, UNAUTHENTICATED = 3, 8, 14, 16
"""Status codes of gRPC."""
BUSY = "the server is busy: its queue is full"
FULL = "the server is busy: its queue or its memory is full"
CLOSED = "the server is starting, restarting or stopping"
DOWN = "the model server does not answer: it may be restarting"


def local_replies(*, grpc: bool, plan: FrontPlan) -> EnvoyFields:
    """Describe the answers that Envoy gives itself: what happened, whether to try again, and the status where it is not Envoy's."""
    mebibytes = plan.max_request_bytes / 2**20
    replies = [
        _Reply(_flagged("UO"), BUSY, grpc_status=RESOURCE_EXHAUSTED, retry=True),
        _Reply(_flagged("FI"), CLOSED, grpc_status=UNAVAILABLE, retry=True),
        _Reply(_flagged("UF", "UH", "UC", "LH", "URX"), DOWN, grpc_status=UNAVAILABLE, retry=True),
        _Reply(
            _status(413),
            f"the request is larger than the {mebibytes:g} MiB that the server accepts",
            grpc_status=INVALID_ARGUMENT,
        ),
    ]
    if plan.api_keys:
        message = "this server needs an API key, in the header x-api-key"
        replies.append(_Reply(_without_key(plan.api_keys), message, status=401, grpc_status=UNAUTHENTICATED))
    # Envoy has no flag for its own overload and for a hold, but one for every other answer with this status
    replies.append(_Reply(_status(503), FULL, grpc_status=RESOURCE_EXHAUSTED, retry=True))
    return {"mappers": [reply.mapper(grpc=grpc) for reply in replies]}


@dataclass(frozen=True)
class _Reply:
    """An answer of Envoy itself.

    Attributes:
        condition: When it is given, as an access log filter.
        message: What the client reads.
        status: HTTP status; None: Envoy's.
        grpc_status: Status of gRPC.
        retry: Whether the same request may succeed a little later.
    """

    condition: EnvoyFields
    message: str
    _: KW_ONLY
    status: int | None = None
    grpc_status: int
    retry: bool = False

    def mapper(self, *, grpc: bool) -> EnvoyFields:
        """Return it as an entry of Envoy's ``LocalReplyConfig``."""
        headers = [RETRY_AFTER] if self.retry else []
        if grpc:
            headers.append(("grpc-status", str(self.grpc_status)))
        else:
            headers.append(JSON_TYPE)
        message = self.message if grpc else json_error(self.message)
        mapper: EnvoyFields = {
            "filter": self.condition,
            "body": {"inline_string": message},
            "headers_to_add": [overwritten(key, value) for key, value in headers],
        }
        if self.status is not None:
            mapper["status_code"] = self.status
        return mapper


def _flagged(*flags: str) -> EnvoyFields:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status(code: int) -> EnvoyFields:
    return {
        "status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": code, "runtime_key": f"front.status_{code}"}}}
    }


def _with_key(api_keys: Sequence[str]) -> list[EnvoyFields]:
    """Return a header matcher for each way to send one of the keys: as x-api-key, or as a bearer token."""
    sent = [(header, f"{prefix}{key}") for key in api_keys for header, prefix in (("x-api-key", ""), ("authorization", "Bearer "))]
    return [{"name": header, "string_match": {"exact": value}} for header, value in sent]


def key_rules(api_keys: Sequence[str]) -> EnvoyFields:
    """Return the configuration of the filter that lets requests with a key pass."""
    principals = [{"header": matcher} for matcher in _with_key(api_keys)]
    return {"rules": {"policies": {"api keys": {"permissions": [{"any": True}], "principals": principals}}}}


def _without_key(api_keys: Sequence[str]) -> EnvoyFields:
    """Return the condition that a request was refused for its missing key, as an access log filter."""
    missing = [
        {"header_filter": {"header": matcher | {"invert_match": True, "treat_missing_header_as_empty": True}}}
        for matcher in _with_key(api_keys)
    ]
    return {"and_filter": {"filters": [_status(403), *missing]}}
