"""The configuration of the Envoy proxy in front of Triton, as a dict with the fields of Envoy's ``Bootstrap``.

``tritonize serve`` and the image use the same configuration; they differ in addresses only. Run as a program, this module prints
the configuration of the image (``serving/docker/envoy.json``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

Config = dict[str, Any]

GUARD = Path(__file__).parent / "guard.lua"
GATE = "fault.http.abort.abort_percent"
"""Runtime key of Envoy: 100 refuses every request, 0 lets them pass."""
REGEX_SIZE = "re2.max_program_size.error_level"
RETRY_AFTER = ("retry-after", "1")
HEADERS_SECONDS = 10
"""How long a client may take to send its headers, in seconds."""
UPLOAD_SECONDS = 60
"""How long a client may take to send a request, in seconds."""
IDLE_SECONDS = 600
"""After this many seconds without a byte, a connection or a request without an answer is closed."""
MAX_CONNECTIONS = 10_000
"""Client connections at the same time."""
MAX_HEAP_BYTES = 1024 * 2**20
"""Memory of Envoy at which it refuses requests."""
RESOURCE_EXHAUSTED, UNAVAILABLE, UNAUTHENTICATED = 8, 14, 16
"""Status codes of gRPC."""
BUSY = "the server is busy: its queue is full"
CLOSED = "the server is starting, restarting or stopping"
DOWN = "the model server does not answer: it may be restarting"
GRPC_METHODS = (
    "ServerLive|ServerReady|ServerMetadata|ModelReady|ModelMetadata|ModelConfig|ModelStatistics|RepositoryIndex|"
    "TraceSetting|LogSettings|SystemSharedMemoryStatus|CudaSharedMemoryStatus"
)
"""Methods of Triton's gRPC service that change nothing. Triton itself refuses those of them that are restricted."""


@dataclass(frozen=True, kw_only=True)
class FrontPlan:
    """What the configuration depends on.

    Attributes:
        repository: The model repository, as the proxy sees it.
        http: Where clients connect by HTTP: host and port.
        grpc: Where clients connect by gRPC.
        metrics: Where metrics are read.
        triton_http: Triton's HTTP server: the path of a socket, or host and port.
        triton_grpc: Triton's gRPC server.
        triton_metrics: Triton's metrics.
        admin: Path of the socket of Envoy's administration; None: there is none.
        starts_open: Whether requests pass before the gate is opened.
        in_flight: Requests by each protocol that Triton has at the same time.
        queue: Requests by each protocol that wait for their turn; further ones are refused.
        max_request_bytes: Largest body of a request.
        certificate: Certificate chain as a PEM file; None: no TLS.
        private_key: Its private key as a PEM file.
        api_keys: Keys, of which a client must send one; empty: no key is needed.
        access_log: File of the access log; None: there is none.
    """

    repository: Path
    http: tuple[str, int]
    grpc: tuple[str, int]
    metrics: tuple[str, int]
    triton_http: Path | tuple[str, int]
    triton_grpc: Path | tuple[str, int]
    triton_metrics: Path | tuple[str, int]
    admin: Path | None
    starts_open: bool
    in_flight: int
    queue: int
    max_request_bytes: int
    certificate: Path | None = None
    private_key: Path | None = None
    api_keys: Sequence[str] = ()
    access_log: Path | None = None


def front_configuration(plan: FrontPlan) -> Config:
    """Return the configuration of Envoy."""
    config: Config = {
        "node": {"id": "tritonize", "cluster": "tritonize"},
        "static_resources": {
            "listeners": [
                _listener("http", plan.http, _http_routes(), plan),
                _listener("grpc", plan.grpc, _grpc_routes(), plan),
                _listener("metrics", plan.metrics, _metrics_routes(plan), plan),
            ],
            "clusters": _clusters(plan),
        },
        "layered_runtime": {
            "layers": [
                {"name": "start", "static_layer": {GATE: 0 if plan.starts_open else 100, REGEX_SIZE: 1000}},
                {"name": "gate", "admin_layer": {}},
            ]
        },
        "overload_manager": _overload(),
    }
    if plan.admin is not None:
        config["admin"] = {"address": {"pipe": {"path": str(plan.admin), "mode": 0o600}}}
    return config


# -- listeners and filters ----------------------------------------------------------------------------------------------------


def _listener(name: str, where: tuple[str, int], routes: Sequence[Config], plan: FrontPlan) -> Config:
    chain: Config = {"filters": [_network_filter("http_connection_manager", _manager(name, routes, plan))]}
    if plan.certificate is not None and name != "metrics":
        chain["transport_socket"] = _tls(plan)
    return {
        "name": name,
        "address": _address(where),
        "per_connection_buffer_limit_bytes": 2**20,
        "enable_reuse_port": False,  # a second proxy at the same port must fail
        "filter_chains": [chain],
    }


def _manager(name: str, routes: Sequence[Config], plan: FrontPlan) -> Config:
    manager: Config = {
        "@type": _kind("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "codec_type": "HTTP2" if name == "grpc" else "AUTO",
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
        "http_filters": _filters(name, plan),
        "common_http_protocol_options": {"idle_timeout": f"{IDLE_SECONDS}s", "max_headers_count": 100},
        "http2_protocol_options": {"max_concurrent_streams": 1024},
        "max_request_headers_kb": 32,
        "request_headers_timeout": f"{HEADERS_SECONDS}s",
        "stream_idle_timeout": f"{IDLE_SECONDS}s",
        "request_timeout": f"{UPLOAD_SECONDS}s",
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "strip_any_host_port": True,
        "local_reply_config": _local_replies(grpc=name == "grpc", plan=plan),
    }
    if plan.access_log is not None and name != "metrics":
        manager["access_log"] = [_access_log(plan.access_log)]
    return manager


def _filters(name: str, plan: FrontPlan) -> list[Config]:
    router = _http_filter("router", "router.v3.Router", {"suppress_envoy_headers": True})
    if name == "metrics":
        return [router]
    gate = {"abort": {"http_status": 503, "percentage": {"numerator": 0, "denominator": "HUNDRED"}}}
    filters = [_http_filter("fault", "fault.v3.HTTPFault", gate)]
    if plan.api_keys:
        filters.append(_http_filter("rbac", "rbac.v3.RBAC", _key_rules(plan.api_keys)))
    if name == "http":
        filters.append(_http_filter("decompressor", "decompressor.v3.Decompressor", _gzip()))
    buffer = {"max_request_bytes": plan.max_request_bytes}
    return [
        *filters,
        _http_filter("buffer", "buffer.v3.Buffer", buffer),
        _http_filter("lua", "lua.v3.Lua", {"default_source_code": {"inline_string": guard_source(plan.repository)}}),
        router,
    ]


def _with_key(api_keys: Sequence[str]) -> list[Config]:
    """Return a header matcher for each way to send one of the keys: as x-api-key, or as a bearer token."""
    sent = [(header, f"{prefix}{key}") for key in api_keys for header, prefix in (("x-api-key", ""), ("authorization", "Bearer "))]
    return [{"name": header, "string_match": {"exact": value}} for header, value in sent]


def _key_rules(api_keys: Sequence[str]) -> Config:
    principals = [{"header": matcher} for matcher in _with_key(api_keys)]
    return {"rules": {"policies": {"api keys": {"permissions": [{"any": True}], "principals": principals}}}}


def _without_key(api_keys: Sequence[str]) -> Config:
    """Return the condition that a request was refused for its missing key, as an access log filter."""
    missing = [
        {"header_filter": {"header": matcher | {"invert_match": True, "treat_missing_header_as_empty": True}}}
        for matcher in _with_key(api_keys)
    ]
    return {"and_filter": {"filters": [_status(403), *missing]}}


def guard_source(repository: Path) -> str:
    """Return the source of the Lua filter for a model repository."""
    return f"REPOSITORY = {json.dumps(str(repository))}\n{GUARD.read_text(encoding='utf-8')}"


def _gzip() -> Config:
    """Decompress requests, so that the limit of the body and the guard see what Triton would unpack."""
    return {
        "decompressor_library": {
            "name": "gzip",
            "typed_config": {"@type": _kind("compression.gzip.decompressor.v3.Gzip"), "max_inflate_ratio": 100},
        },
        "response_direction_config": {
            "common_config": {"enabled": {"default_value": False, "runtime_key": "front.decompress_responses"}}
        },
    }


def _local_replies(*, grpc: bool, plan: FrontPlan) -> Config:
    """Describe the answers that Envoy gives itself: what happened, whether to try again, and the status where it is not Envoy's."""
    mebibytes = plan.max_request_bytes / 2**20
    replies = [
        _Reply(_flagged("UO"), BUSY, grpc_status=RESOURCE_EXHAUSTED, retry=True),
        _Reply(_flagged("OM"), "the server is busy: its memory is full", grpc_status=RESOURCE_EXHAUSTED, retry=True),
        _Reply(_flagged("FI"), CLOSED, grpc_status=UNAVAILABLE, retry=True),
        _Reply(_flagged("UF", "UH", "UC", "LH", "URX"), DOWN, grpc_status=UNAVAILABLE, retry=True),
        _Reply(
            _status(413),
            f"the request is larger than the {mebibytes:g} MiB that the server accepts",
            grpc_status=RESOURCE_EXHAUSTED,
        ),
    ]
    if plan.api_keys:
        message = "this server needs an API key, in the header x-api-key"
        replies.append(_Reply(_without_key(plan.api_keys), message, status=401, grpc_status=UNAUTHENTICATED))
    text: Config = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}}
    form = text if grpc else {"json_format": {"error": "%LOCAL_REPLY_BODY%"}}
    return {"mappers": [reply.mapper(grpc=grpc) for reply in replies], "body_format": form}


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

    condition: Config
    message: str
    _: KW_ONLY
    status: int | None = None
    grpc_status: int
    retry: bool = False

    def mapper(self, *, grpc: bool) -> Config:
        """Return it as an entry of Envoy's ``LocalReplyConfig``."""
        headers = [RETRY_AFTER] if self.retry else []
        if grpc:
            headers.append(("grpc-status", str(self.grpc_status)))
        mapper: Config = {"filter": self.condition, "body": {"inline_string": self.message}}
        if headers:
            mapper["headers_to_add"] = [_overwritten(key, value) for key, value in headers]
        if self.status is not None:
            mapper["status_code"] = self.status
        return mapper


def _flagged(*flags: str) -> Config:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status(code: int) -> Config:
    return {
        "status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": code, "runtime_key": f"front.status_{code}"}}}
    }


def _access_log(path: Path) -> Config:
    """Describe the log: one JSON object a line, without the texts."""
    fields = {
        "time": "%START_TIME%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "protocol": "%PROTOCOL%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "flags": "%RESPONSE_FLAGS%",
        "ms": "%DURATION%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "traceparent": "%REQ(TRACEPARENT)%",
    }
    return {
        "name": "file",
        "typed_config": {
            "@type": _kind("access_loggers.file.v3.FileAccessLog"),
            "path": str(path),
            "log_format": {"json_format": fields},
        },
    }


def _tls(plan: FrontPlan) -> Config:
    certificate = {
        "certificate_chain": {"filename": str(plan.certificate)},
        "private_key": {"filename": str(plan.private_key)},
    }
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificates": [certificate],
        "alpn_protocols": ["h2", "http/1.1"],
    }
    return {
        "name": "tls",
        "typed_config": {"@type": _kind("transport_sockets.tls.v3.DownstreamTlsContext"), "common_tls_context": common},
    }


# -- routes: only these paths reach Triton ------------------------------------------------------------------------------------

MODEL = r"/v2/models/[^/]+(?:/versions/[0-9]+)?"
CHANGING = r"/v2/(?:repository|logging|trace|systemsharedmemory|cudasharedmemory)(?:/.*)?|/v2/models/[^/]+/trace/.*"


def _http_routes() -> list[Config]:
    return [
        _health(r"/v2/health/(?:live|ready)", "triton_http_control"),
        _route(rf"{MODEL}/(?:infer|generate|generate_stream)", "triton_http", method="POST"),
        _route(r"/v2/?", "triton_http_control"),
        _route(r"/v2/models/stats", "triton_http_control"),
        _route(rf"{MODEL}(?:/(?:config|ready|stats))?", "triton_http_control"),
        _refusal(CHANGING, 403, "this part of Triton's API is closed"),
        _refusal(r"/.*", 404, "there is nothing at this path"),
    ]


def _grpc_routes() -> list[Config]:
    service = r"/inference\.GRPCInferenceService/"
    return [
        _health(r"/grpc\.health\.v1\.Health/Check", "triton_grpc_control"),
        _health(rf"{service}Server(?:Live|Ready)", "triton_grpc_control"),
        _route(rf"{service}ModelInfer", "triton_grpc", method="POST"),
        _route(rf"{service}(?:{GRPC_METHODS})", "triton_grpc_control"),
        _refusal(rf"{service}ModelStreamInfer", 404, "no model here streams: use ModelInfer"),
        _refusal(rf"{service}.*", 403, "this part of Triton's API is closed"),
        _refusal(r"/.*", 404, "there is no such service"),
    ]


def _metrics_routes(plan: FrontPlan) -> list[Config]:
    routes = [_route(r"/metrics", "triton_metrics", method="GET")]
    if plan.admin is not None:
        own = _route(r"/metrics/front", "front_admin", method="GET")
        own["route"]["regex_rewrite"] = {"pattern": {"regex": ".*"}, "substitution": "/stats/prometheus?usedonly"}
        routes.append(own)
    return [*routes, _refusal(r"/.*", 404, "there is nothing at this path: metrics are at /metrics")]


def _route(pattern: str, cluster: str, *, method: str | None = None) -> Config:
    match: Config = {"safe_regex": {"regex": pattern}}
    if method is not None:
        match["headers"] = [{"name": ":method", "string_match": {"exact": method}}]
    retries = {
        "retry_on": "connect-failure,refused-stream,reset-before-request",
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.025s"},
    }
    route: Config = {
        "match": match,
        "route": {
            "cluster": cluster,
            "timeout": f"{IDLE_SECONDS}s",
            "max_stream_duration": {"grpc_timeout_header_max": "0s"},
            "retry_policy": retries,
        },
    }
    if cluster == "triton_http":
        # Triton ends when a large body has the content type of a form, which curl sends by default
        route["request_headers_to_add"] = [_overwritten("content-type", "application/json")]
    return route


def _health(pattern: str, cluster: str) -> Config:
    """Route health checks, which need no API key."""
    disabled = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    return _route(pattern, cluster) | {"typed_per_filter_config": {"rbac": disabled}}


def _refusal(pattern: str, status: int, message: str) -> Config:
    return {
        "match": {"safe_regex": {"regex": pattern}},
        "direct_response": {"status": status, "body": {"inline_string": message}},
    }


# -- clusters -----------------------------------------------------------------------------------------------------------------


def _clusters(plan: FrontPlan) -> list[Config]:
    """Describe Triton's servers. Reads have connections of their own, so that they do not wait behind inference."""
    clusters = [
        _cluster("triton_http", plan.triton_http, connections=plan.in_flight, queue=plan.queue),
        _cluster("triton_http_control", plan.triton_http, connections=8, queue=64),
        _cluster("triton_metrics", plan.triton_metrics, connections=4, queue=16),
        _cluster("triton_grpc", plan.triton_grpc, connections=1, queue=plan.queue, streams=plan.in_flight),
        _cluster("triton_grpc_control", plan.triton_grpc, connections=1, queue=64, streams=8),
    ]
    if plan.admin is not None:
        clusters.append(_cluster("front_admin", plan.admin, connections=2, queue=8))
    return clusters


def _cluster(name: str, where: Path | tuple[str, int], *, connections: int, queue: int, streams: int | None = None) -> Config:
    thresholds = {
        "max_connections": connections,
        "max_pending_requests": queue,
        "max_requests": max(connections, streams or 0),
        "max_retries": 16,
    }
    protocol: Config = {"http_protocol_options": {}}
    if streams is not None:
        protocol = {"http2_protocol_options": {"max_concurrent_streams": streams}}
    return {
        "name": name,
        "type": "STATIC" if isinstance(where, Path) or where[0][0].isdigit() else "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(where)}}]}],
        },
        "circuit_breakers": {"thresholds": [thresholds]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _kind("upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": protocol,
            }
        },
    }


def _overload() -> Config:
    heap = {
        "name": "envoy.resource_monitors.fixed_heap",
        "typed_config": {"@type": _kind("resource_monitors.fixed_heap.v3.FixedHeapConfig"), "max_heap_size_bytes": MAX_HEAP_BYTES},
    }
    connections = {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": _kind("resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"),
            "max_active_downstream_connections": MAX_CONNECTIONS,
        },
    }
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [heap, connections],
        "actions": [
            {
                "name": f"envoy.overload_actions.{action}",
                "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": value}}],
            }
            for action, value in (("shrink_heap", 0.8), ("stop_accepting_requests", 0.95))
        ],
    }


# -- small parts --------------------------------------------------------------------------------------------------------------


def _address(where: Path | tuple[str, int]) -> Config:
    if isinstance(where, Path):
        return {"pipe": {"path": str(where)}}
    return {"socket_address": {"address": where[0], "port_value": where[1]}}


def _http_filter(name: str, kind: str, config: Config) -> Config:
    return {"name": name, "typed_config": {"@type": _kind(f"filters.http.{kind}")} | config}


def _network_filter(name: str, config: Config) -> Config:
    return {"name": name, "typed_config": config}


def _kind(name: str) -> str:
    return f"type.googleapis.com/envoy.extensions.{name}"


def _overwritten(key: str, value: str) -> Config:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
