"""The answers that the proxy gives itself."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from serving.front.envoy_fields import JSON_TYPE, EnvoyFields, json_error, overwritten
from serving.front.front_plan import FrontPlan

RETRY_AFTER = ("retry-after", "1")
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE = 3, 8, 14
"""Status codes of gRPC."""
BUSY = "the server is busy: its queue is full"
FULL = "the server is busy: its queue or its memory is full"
CLOSED = "the server is starting, restarting or stopping"
DOWN = "the model server does not answer: it may be restarting"


def local_replies(*, grpc: bool, plan: FrontPlan) -> EnvoyFields:
    """Describe the answers that Envoy gives itself: what happened, and whether to try again."""
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
        # Envoy has no flag for its own overload and for a hold, but one for every other answer with this status
        _Reply(_status(503), FULL, grpc_status=RESOURCE_EXHAUSTED, retry=True),
    ]
    return {"mappers": [reply.mapper(grpc=grpc) for reply in replies]}


@dataclass(frozen=True)
class _Reply:
    """An answer of Envoy itself.

    Attributes:
        condition: When it is given, as an access log filter.
        message: What the client reads.
        grpc_status: Status of gRPC.
        retry: Whether the same request may succeed a little later.
    """

    condition: EnvoyFields
    message: str
    _: KW_ONLY
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
        return {
            "filter": self.condition,
            "body": {"inline_string": message},
            "headers_to_add": [overwritten(key, value) for key, value in headers],
        }


def _flagged(*flags: str) -> EnvoyFields:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status(code: int) -> EnvoyFields:
    return {
        "status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": code, "runtime_key": f"front.status_{code}"}}}
    }
