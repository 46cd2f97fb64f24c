"""The configuration of the Envoy proxy in front of Triton, as a dict with the fields of Envoy's ``Bootstrap``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from serving.front.envoy_fields import EnvoyFields, address, http_filter, network_filter, type_url
from serving.front.failed_requests import failure_log
from serving.front.front_plan import FrontPlan
from serving.front.replies import local_replies
from serving.front.request_ids import GIVEN_ID, request_ids
from serving.front.routes import IDLE_SECONDS, KEY_FILTER, UPLOAD_SECONDS, grpc_routes, http_routes, metrics_routes
from serving.front.secrets import sds_source
from serving.front.streaming import STREAMING_ENDPOINT
from serving.request_context import LONGEST_ID
from serving.runtime.failure_messages import DEADLINE_EXCEEDED, INTERNAL, STATUSES, UNAVAILABLE

GUARD = Path(__file__).parent / "guard"
GUARD_FILES = (
    "refusals",
    "text",
    "json",
    "protobuf",
    "digest",
    "models",
    "tensors",
    "http_requests",
    "grpc_requests",
    "answers",
    "frames",
    "streams",
    "envoy",
)
"""Files of the Lua filter, in the order in which they use each other."""
GRPC_CODES = {DEADLINE_EXCEEDED: "4", INTERNAL: "13", UNAVAILABLE: "14"}
"""Codes of gRPC by the names of the statuses that models give."""
GATE = "fault.http.abort.abort_percent"
"""Runtime key of Envoy: 100 refuses every request, 0 lets them pass."""
REGEX_SIZE = "re2.max_program_size.error_level"
HEADERS_SECONDS = 10
"""How long a client may take to send its headers, in seconds."""
MAX_CONNECTIONS = 10_000
"""Client connections at the same time."""
MAX_STREAMS = 256
"""Requests at the same time in one HTTP/2 connection. Its client lets further ones wait."""
MAX_ANSWER_BYTES = 64 * 2**20
"""Largest answer: the guard reads an answer whole before it passes."""
MAX_HEAP_BYTES = 1024 * 2**20
"""Memory of Envoy at which it refuses requests."""
STALLED_SECONDS = 2
"""How long a request may stand still while Envoy's memory is short, in seconds."""


def envoy_bootstrap(plan: FrontPlan) -> EnvoyFields:
    """Return the configuration of Envoy."""
    return {
        "node": {"id": "tritonize", "cluster": "tritonize"},
        "static_resources": {
            "listeners": [
                _listener("http", plan.http, http_routes(streams=plan.streams), plan),
                _listener("grpc", plan.grpc, grpc_routes(streams=plan.streams), plan),
                _listener("metrics", plan.metrics, metrics_routes(), plan),
            ],
            "clusters": _clusters(plan),
        },
        "layered_runtime": {
            "layers": [
                {"name": "start", "static_layer": {GATE: 100, REGEX_SIZE: 1000}},
                {"name": "gate", "admin_layer": {}},
            ]
        },
        "overload_manager": _overload(),
        "admin": {"address": {"pipe": {"path": str(plan.admin), "mode": 0o600}}},
    }


# -- listeners and filters ----------------------------------------------------------------------------------------------------


def _listener(name: str, where: tuple[str, int], routes: Sequence[EnvoyFields], plan: FrontPlan) -> EnvoyFields:
    chain: EnvoyFields = {"filters": [network_filter("http_connection_manager", _manager(name, routes, plan))]}
    if plan.certificate is not None and name != "metrics":
        chain["transport_socket"] = _tls(plan.certificate, plan.client_ca)
    return {
        "name": name,
        "address": address(where),
        "per_connection_buffer_limit_bytes": MAX_ANSWER_BYTES,
        "enable_reuse_port": False,  # a second proxy at the same port must fail
        "filter_chains": [chain],
    }


def _manager(name: str, routes: Sequence[EnvoyFields], plan: FrontPlan) -> EnvoyFields:
    manager: EnvoyFields = {
        "@type": type_url("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "codec_type": "HTTP2" if name == "grpc" else "AUTO",
        "route_config": {
            "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}],
            "request_headers_to_remove": [GIVEN_ID],
        },
        "http_filters": _filters(name, plan),
        "common_http_protocol_options": {"idle_timeout": f"{IDLE_SECONDS}s", "max_headers_count": 100},
        "http2_protocol_options": {"max_concurrent_streams": MAX_STREAMS},
        "max_request_headers_kb": 32,
        "request_headers_timeout": f"{HEADERS_SECONDS}s",
        "stream_idle_timeout": f"{IDLE_SECONDS}s",
        # it would end a stream that waits for its first answer: the routes of the other calls limit their time
        "request_timeout": "0s" if name == "grpc" and plan.streams else f"{UPLOAD_SECONDS}s",
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "strip_any_host_port": True,
        "local_reply_config": local_replies(grpc=name == "grpc", plan=plan),
    }
    if name == "grpc" and plan.grpc_connection_seconds is not None:
        manager["common_http_protocol_options"]["max_connection_duration"] = f"{plan.grpc_connection_seconds:g}s"
    if name == "metrics":
        return manager | {"generate_request_id": False}
    return manager | request_ids() | {"access_log": _logs(name, plan)}


def _logs(name: str, plan: FrontPlan) -> list[EnvoyFields]:
    logs = [failure_log(grpc_listener=name == "grpc")]
    return logs if plan.access_log is None else [*logs, _access_log(plan.access_log)]


def _filters(name: str, plan: FrontPlan) -> list[EnvoyFields]:
    router = http_filter("router", "router.v3.Router", {"suppress_envoy_headers": True})
    if name == "metrics":
        return [router]
    gate = {"abort": {"http_status": 503, "percentage": {"numerator": 0, "denominator": "HUNDRED"}}}
    filters = [http_filter("fault", "fault.v3.HTTPFault", gate)]
    if plan.keys_file is not None:
        filters.append(
            http_filter(KEY_FILTER, "lua.v3.Lua", {"default_source_code": {"inline_string": key_source(plan.keys_file)}})
        )
    if name == "http":
        filters.append(http_filter("decompressor", "decompressor.v3.Decompressor", _gzip()))
    buffer = {"max_request_bytes": plan.max_request_bytes}
    guard = guard_source(plan.repository, max_request_bytes=plan.max_request_bytes, stop_file=plan.stop_file)
    return [
        *filters,
        http_filter("buffer", "buffer.v3.Buffer", buffer),
        http_filter("lua", "lua.v3.Lua", {"default_source_code": {"inline_string": guard}}),
        router,
    ]


def guard_source(repository: Path, *, max_request_bytes: int, stop_file: Path | None = None) -> str:
    """Return the source of the Lua filter, which Envoy loads as one text.

    Args:
        repository: The model repository, as the proxy sees it.
        max_request_bytes: Largest request in a stream.
        stop_file: What the filter reads to learn that streams must end; None: nobody says it.
    """
    values: dict[str, object] = {
        "REPOSITORY": str(repository),
        "MAX_REQUEST_BYTES": max_request_bytes,
        "GIVEN_ID": GIVEN_ID,
        "LONGEST_ID": LONGEST_ID,
        "STREAMING_ENDPOINT": STREAMING_ENDPOINT,
    }
    if stop_file is not None:
        values["STOP_FILE"] = str(stop_file)
    failures = ", ".join(f"[{json.dumps(message)}] = {json.dumps(GRPC_CODES[status])}" for message, status in STATUSES.items())
    files = [(GUARD / f"{name}.lua").read_text(encoding="utf-8") for name in GUARD_FILES]
    globals_ = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join([*globals_, f"FAILURES = {{{failures}}}", *files])


def key_source(keys_file: Path) -> str:
    """Return the source of the Lua filter that checks API keys.

    Args:
        keys_file: The file with the keys.
    """
    return f"KEYS_FILE = {json.dumps(str(keys_file))}\n{(GUARD / 'api_keys.lua').read_text(encoding='utf-8')}"


def _gzip() -> EnvoyFields:
    """Decompress requests, so that the limit of the body and the guard see what Triton would unpack."""
    return {
        "decompressor_library": {
            "name": "gzip",
            "typed_config": {"@type": type_url("compression.gzip.decompressor.v3.Gzip"), "max_inflate_ratio": 100},
        },
        "response_direction_config": {
            "common_config": {"enabled": {"default_value": False, "runtime_key": "front.decompress_responses"}}
        },
    }


def _access_log(path: Path) -> EnvoyFields:
    """Describe the log: one JSON object a line, without the texts."""
    fields = {
        "time": "%START_TIME%",
        "client": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
        "forwarded_for": "%REQ(X-FORWARDED-FOR)%",
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
        "traceparent": "%REQ(TRACEPARENT?X-UNSAMPLED-TRACEPARENT)%",
    }
    return {
        "name": "file",
        "typed_config": {
            "@type": type_url("access_loggers.file.v3.FileAccessLog"),
            "path": str(path),
            "log_format": {"json_format": fields},
        },
    }


def _tls(certificate: Path, client_ca: Path | None) -> EnvoyFields:
    common: EnvoyFields = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [sds_source(certificate, "tls_certificate")],
        "alpn_protocols": ["h2", "http/1.1"],
    }
    config: EnvoyFields = {"@type": type_url("transport_sockets.tls.v3.DownstreamTlsContext"), "common_tls_context": common}
    if client_ca is not None:
        common["validation_context_sds_secret_config"] = sds_source(client_ca, "validation_context")
        config["require_client_certificate"] = True
    return {"name": "tls", "typed_config": config}


# -- clusters -----------------------------------------------------------------------------------------------------------------


def _clusters(plan: FrontPlan) -> list[EnvoyFields]:
    """Describe Triton's servers. Reads have connections of their own, so that they do not wait behind inference."""
    clusters = [
        _cluster("triton_http", plan.triton_http, connections=plan.in_flight, queue=plan.queue),
        _cluster("triton_http_control", plan.triton_http, connections=8, queue=64),
        _cluster("triton_metrics", plan.triton_metrics, connections=4, queue=16),
        _cluster("triton_grpc", plan.triton_grpc, connections=1, queue=plan.queue, streams=plan.in_flight),
        _cluster("triton_grpc_control", plan.triton_grpc, connections=1, queue=64, streams=8),
    ]
    if plan.streams:
        clusters += [
            _cluster("triton_http_streams", plan.triton_http, connections=plan.in_flight, queue=plan.queue),
            _cluster("triton_grpc_streams", plan.triton_grpc, connections=1, queue=plan.queue, streams=plan.in_flight),
        ]
    return [*clusters, _cluster("front_admin", plan.admin, connections=2, queue=8)]


def _cluster(name: str, socket: Path, *, connections: int, queue: int, streams: int | None = None) -> EnvoyFields:
    thresholds = {
        "max_connections": connections,
        "max_pending_requests": queue,
        "max_requests": max(connections, streams or 0),
        "max_retries": 16,
        "track_remaining": True,  # the metrics tell how full the queue is
    }
    protocol: EnvoyFields = {"http_protocol_options": {}}
    if streams is not None:
        protocol = {"http2_protocol_options": {"max_concurrent_streams": streams}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(socket)}}]}],
        },
        "circuit_breakers": {"thresholds": [thresholds]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": type_url("upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": protocol,
            }
        },
    }


def _overload() -> EnvoyFields:
    heap = {
        "name": "envoy.resource_monitors.fixed_heap",
        "typed_config": {
            "@type": type_url("resource_monitors.fixed_heap.v3.FixedHeapConfig"),
            "max_heap_size_bytes": MAX_HEAP_BYTES,
        },
    }
    connections = {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": type_url("resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"),
            "max_active_downstream_connections": MAX_CONNECTIONS,
        },
    }
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [heap, connections],
        "actions": [
            _overload_action("shrink_heap", {"threshold": {"value": 0.5}}),
            _overload_action("reduce_timeouts", {"scaled": {"scaling_threshold": 0.5, "saturation_threshold": 0.8}}) | _patience(),
            _overload_action("stop_accepting_requests", {"threshold": {"value": 0.95}}),
        ],
    }


def _overload_action(name: str, trigger: EnvoyFields) -> EnvoyFields:
    """Return what is done when the memory is used to some share."""
    return {
        "name": f"envoy.overload_actions.{name}",
        "triggers": [{"name": "envoy.resource_monitors.fixed_heap", **trigger}],
    }


def _patience() -> EnvoyFields:
    """Return how long requests may stand still while memory is short. One client could otherwise hold it with unfinished ones."""
    timer = {"timer": "HTTP_DOWNSTREAM_STREAM_IDLE", "min_timeout": f"{STALLED_SECONDS}s"}
    kind = "type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig"
    return {"typed_config": {"@type": kind, "timer_scale_factors": [timer]}}
