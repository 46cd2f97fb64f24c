"""What the configuration of the proxy depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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
        streams: Whether a model streams: see :mod:`serving.front.streaming`.
        stop_file: File that tells the guard to end streams; None: there is none.
        certificate: Certificate chain as a PEM file; None: no TLS.
        private_key: Its private key as a PEM file.
        api_keys: Keys, of which a client must send one; empty: no key is needed.
        access_log: File of the access log; None: there is none.
        logs_failures: Whether failed requests are written to the proxy's standard output, for the supervisor.
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
    streams: bool
    stop_file: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    api_keys: Sequence[str] = ()
    access_log: Path | None = None
    logs_failures: bool = False
