"""What the configuration of the proxy depends on."""

from __future__ import annotations

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
        triton_http: Path of the socket of Triton's HTTP server.
        triton_grpc: That of its gRPC server.
        triton_metrics: That of its metrics.
        admin: Path of the socket of Envoy's administration.
        in_flight: Requests by each protocol that Triton has at the same time.
        queue: Requests by each protocol that wait for their turn; further ones are refused.
        max_request_bytes: Largest body of a request.
        streams: Whether a model streams: see :mod:`serving.front.streaming`.
        stop_file: File that tells the guard to end streams.
        certificate: File of the secret with certificate chain and private key; None: no TLS.
        client_ca: File of the secret with the authorities that sign the certificates of clients; None: clients need none.
        keys_file: File with the keys of which a client must send one, one a line; None: no key is needed.
        access_log: File of the access log; None: there is none.
        grpc_connection_seconds: After this time a gRPC client is asked to connect anew; None: never.
    """

    repository: Path
    http: tuple[str, int]
    grpc: tuple[str, int]
    metrics: tuple[str, int]
    triton_http: Path
    triton_grpc: Path
    triton_metrics: Path
    admin: Path
    in_flight: int
    queue: int
    max_request_bytes: int
    streams: bool
    stop_file: Path
    certificate: Path | None = None
    client_ca: Path | None = None
    grpc_connection_seconds: float | None = None
    keys_file: Path | None = None
    access_log: Path | None = None
