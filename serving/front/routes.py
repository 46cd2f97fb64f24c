"""The routes of the proxy: only these paths reach Triton."""

from __future__ import annotations

from urllib.parse import quote

from serving.front.envoy_fields import JSON_TYPE, EnvoyFields, json_error, overwritten, type_url
from serving.front.replies import FULL, RETRY_AFTER

KEY_FILTER = "api_keys"
"""Name of the filter that checks API keys. Health checks pass without it."""
HOLD = "front.hold"
"""Runtime key of Envoy: 100 refuses inference, 0 lets it pass. Reads always pass."""

UPLOAD_SECONDS = 60
"""How long a client may take to send a request, in seconds."""
IDLE_SECONDS = 600
"""After this many seconds without a byte, a connection or a request without an answer is closed."""
LONGEST = f"{UPLOAD_SECONDS + IDLE_SECONDS}s"
"""How long a call with one answer may last."""
GRPC_METHODS = "ServerMetadata|ModelReady|ModelMetadata|ModelConfig|ModelStatistics"
"""Methods of Triton's gRPC service that need a key and change nothing."""

MODEL = r"/v2/models/[^/]+(?:/versions/[0-9]+)?"
CHANGING = r"/v2/(?:repository|logging|trace|systemsharedmemory|cudasharedmemory)(?:/.*)?|/v2/models/[^/]+/trace/.*"
FRONT_METRICS = (
    "^("
    "http[.](http|grpc)[.](downstream_rq_(total|active|completed|xx|time|timeout|too_large|rx_reset|tx_reset|[1-5]xx)"
    "|downstream_cx_(total|active|ssl_active|protocol_error)|rq_(total|direct_response)|fault[.]aborts_injected)"
    "|cluster[.]triton_[a-z_]+[.](upstream_rq_(total|active|completed|cancelled|timeout|retry|retry_success|time|xx|[1-5]xx)"
    "|upstream_rq_pending_(total|active|overflow)|upstream_cx_(total|active|overflow|connect_fail)"
    "|circuit_breakers[.]default[.](rq_pending_open|remaining_(pending|rq|cx)))"
    "|server[.](live|uptime|memory_(allocated|heap_size|physical_size)|days_until_first_cert_expiring)"
    "|overload[.].*[.](active|pressure)"
    ")$"
)
"""Which of Envoy's metrics are shown, by its own names: also while they are 0, because ``rate()`` does not see the first event of a
counter that appears with it. Envoy has some thousand others."""


def http_routes(*, streams: bool) -> list[EnvoyFields]:
    """Return the routes of the HTTP listener.

    Args:
        streams: Whether a model here streams.
    """
    return [
        _health(r"/v2/health/(?:live|ready)", "triton_http_control"),
        _held(rf"{MODEL}/(?:infer|generate|generate_stream)", json_error(FULL), JSON_TYPE),
        *([_stream(rf"{MODEL}/generate_stream", "triton_http_streams")] if streams else []),
        _route(rf"{MODEL}/(?:infer|generate|generate_stream)", "triton_http", method="POST"),
        _route(r"/v2/?", "triton_http_control"),
        _route(r"/v2/models/stats", "triton_http_control"),
        _route(rf"{MODEL}(?:/(?:config|ready|stats))?", "triton_http_control"),
        _refusal(CHANGING, 403, "this part of Triton's API is closed"),
        _refusal(r"/.*", 404, "there is nothing at this path"),
    ]


def grpc_routes(*, streams: bool) -> list[EnvoyFields]:
    """Return the routes of the gRPC listener.

    Args:
        streams: Whether a model here streams.
    """
    service = r"/inference\.GRPCInferenceService/"
    stream = rf"{service}ModelStreamInfer"
    if streams:
        streamed = [_held(stream, FULL), _unbuffered(_stream(stream, "triton_grpc_streams"))]
    else:
        streamed = [_grpc_refusal(stream, 404, "no model here streams: use ModelInfer")]
    return [
        _health(r"/grpc\.health\.v1\.Health/Check", "triton_grpc_control"),
        _health(rf"{service}Server(?:Live|Ready)", "triton_grpc_control"),
        _held(rf"{service}ModelInfer", FULL),
        _route(rf"{service}ModelInfer", "triton_grpc", method="POST"),
        _route(rf"{service}(?:{GRPC_METHODS})", "triton_grpc_control"),
        *streamed,
        _grpc_refusal(rf"{service}.*", 403, "this part of Triton's API is closed"),
        _grpc_refusal(r"/.*", 404, "there is no such service"),
    ]


def metrics_routes() -> list[EnvoyFields]:
    """Return the routes of the metrics listener: Triton's metrics, and the proxy's own."""
    own = _route(r"/metrics/front", "front_admin", method="GET")
    shown = f"/stats/prometheus?filter={quote(FRONT_METRICS, safe='')}"
    own["route"]["regex_rewrite"] = {"pattern": {"regex": ".*"}, "substitution": shown}
    return [
        _route(r"/metrics", "triton_metrics", method="GET"),
        own,
        _refusal(r"/.*", 404, "there is nothing at this path: metrics are at /metrics"),
    ]


def _route(pattern: str, cluster: str, *, method: str | None = None) -> EnvoyFields:
    match: EnvoyFields = {"safe_regex": {"regex": pattern}}
    if method is not None:
        match["headers"] = [{"name": ":method", "string_match": {"exact": method}}]
    retries = {
        "retry_on": "connect-failure,refused-stream,reset-before-request",
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.025s"},
    }
    route: EnvoyFields = {
        "match": match,
        "route": {
            "cluster": cluster,
            "timeout": f"{IDLE_SECONDS}s",
            "max_stream_duration": {"max_stream_duration": LONGEST, "grpc_timeout_header_max": LONGEST},
            "retry_policy": retries,
        },
    }
    if "grpc" not in cluster:
        # Triton ends when a large body has the content type of a form, which curl sends by default
        route["request_headers_to_add"] = [overwritten("content-type", "application/json")]
    return route


def _stream(pattern: str, cluster: str) -> EnvoyFields:
    """Route streams, which may last as long as something comes every :data:`IDLE_SECONDS`."""
    route = _route(pattern, cluster, method="POST")
    route["route"]["timeout"] = "0s"
    del route["route"]["max_stream_duration"]  # its client ends a stream at its deadline
    return route


def _unbuffered(route: EnvoyFields) -> EnvoyFields:
    """Let each part of a request pass as it comes. What has passed cannot be sent again."""
    del route["route"]["retry_policy"]
    disabled = {"@type": type_url("filters.http.buffer.v3.BufferPerRoute"), "disabled": True}
    return route | {"typed_per_filter_config": {"buffer": disabled}}


def _health(pattern: str, cluster: str) -> EnvoyFields:
    """Route health checks, which need no API key."""
    disabled = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    return _route(pattern, cluster) | {"typed_per_filter_config": {KEY_FILTER: disabled}}


def _held(pattern: str, body: str, *headers: tuple[str, str]) -> EnvoyFields:
    """Refuse inference for a while, where :data:`HOLD` says so."""
    return {
        "match": {
            "safe_regex": {"regex": pattern},
            "runtime_fraction": {"default_value": {"numerator": 0, "denominator": "HUNDRED"}, "runtime_key": HOLD},
        },
        "direct_response": {"status": 503, "body": {"inline_string": body}},
        "response_headers_to_add": [overwritten(*header) for header in (RETRY_AFTER, *headers)],
    }


def _refusal(pattern: str, status: int, message: str) -> EnvoyFields:
    return {
        "match": {"safe_regex": {"regex": pattern}},
        "direct_response": {"status": status, "body": {"inline_string": json_error(message)}},
        "response_headers_to_add": [overwritten(*JSON_TYPE)],
    }


def _grpc_refusal(pattern: str, status: int, message: str) -> EnvoyFields:
    """Refuse a call. Envoy turns the status into that of gRPC."""
    return {"match": {"safe_regex": {"regex": pattern}}, "direct_response": {"status": status, "body": {"inline_string": message}}}
