"""A load balancer in front of several servers: an Envoy that asks for their health, as one in a cluster does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.front.envoy import find_envoy
from serving.front.envoy_fields import address, http_filter, network_filter, type_url
from serving.options import ServeOptions
from tests.helpers.surroundings import free_port

CHECK_SECONDS = 0.5
"""How often the health of each server is asked for."""


@contextlib.contextmanager
def balancer(servers: Sequence[ServeOptions], folder: Path) -> Iterator[ServeOptions]:
    """Run a load balancer for HTTP and gRPC while the block runs.

    Args:
        servers: The servers, which need not run yet.
        folder: An empty folder.

    Yields:
        Its ports, as those of a server: ``metrics_port`` is that of its administration.
    """
    options = replace(servers[0], http_port=free_port(), grpc_port=free_port(), metrics_port=free_port())
    resources = {
        "listeners": [_listener("http", options.http_port), _listener("grpc", options.grpc_port)],
        "clusters": [
            _cluster("http", [(one.http_port, one.own_health_port) for one in servers]),
            _cluster("grpc", [(one.grpc_port, one.own_health_port) for one in servers]),
        ],
    }
    config = {"static_resources": resources, "admin": {"address": address(("127.0.0.1", options.metrics_port))}}
    (folder / "balancer.json").write_text(json.dumps(config), encoding="utf-8")
    command = [find_envoy(), "-c", folder / "balancer.json", "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield options
        finally:
            process.terminate()


def wait_healthy(options: ServeOptions, server: ServeOptions, seconds: float = 60) -> None:
    """Wait until the load balancer sends requests of both protocols to a server."""
    deadline = time.monotonic() + seconds
    while not _is_healthy(options, server):
        assert time.monotonic() < deadline, "the load balancer does not see the server"
        time.sleep(0.05)


def _is_healthy(options: ServeOptions, server: ServeOptions) -> bool:
    with contextlib.suppress(OSError):
        with urllib.request.urlopen(f"http://127.0.0.1:{options.metrics_port}/clusters", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        wanted = {f"{name}::127.0.0.1:{port}::health_flags::healthy" for name, port in _ports(server).items()}
        return wanted <= set(lines)
    return False


def _ports(server: ServeOptions) -> dict[str, int]:
    return {"http": server.http_port, "grpc": server.grpc_port}


def _listener(name: str, port: int) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "60s"}}
    manager = {
        "@type": type_url("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "codec_type": "HTTP2" if name == "grpc" else "HTTP1",
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
        "http_filters": [http_filter("router", "router.v3.Router", {})],
    }
    chains = [{"filters": [network_filter("http_connection_manager", manager)]}]
    return {"name": name, "address": address(("127.0.0.1", port)), "filter_chains": chains}


def _cluster(name: str, ports: Sequence[tuple[int, int]]) -> dict[str, Any]:
    endpoints = [
        {"endpoint": {"address": address(("127.0.0.1", port)), "health_check_config": {"port_value": health}}}
        for port, health in ports
    ]
    protocol: dict[str, Any] = {"http2_protocol_options" if name == "grpc" else "http_protocol_options": {}}
    check = {
        "timeout": "2s",
        "interval": f"{CHECK_SECONDS}s",
        "no_traffic_interval": f"{CHECK_SECONDS}s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": "/readyz", "codec_client_type": "HTTP1"},
    }
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "health_checks": [check],
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": type_url("upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": protocol,
            }
        },
    }
