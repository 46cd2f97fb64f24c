"""Options of the proxy between clients and Triton. Light, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from serving.option_fields import Option


@dataclass(frozen=True, kw_only=True)
class FrontOptions:
    """How the proxy between clients and Triton works."""

    front: Annotated[
        Literal["envoy", "none"],
        Option(
            "Proxy in front of Triton; envoy: it refuses harmful requests, bounds the queue and checks that each answer belongs to "
            "its request; none: clients reach Triton directly."
        ),
    ] = "envoy"
    max_request_mib: Annotated[float, Option("Largest body of a request in MiB.", above=0, maximum=1024)] = 4.0
    in_flight: Annotated[
        int | None,
        Option(
            "Number of requests that Triton works on at the same time, for each protocol.",
            minimum=1,
            maximum=10_000,
            default_text="as many as the packaged models need",
        ),
    ] = None
    queue: Annotated[
        int,
        Option(
            "Number of requests that wait for their turn, for each protocol; further ones are refused with 503 and "
            "RESOURCE_EXHAUSTED.",
            minimum=1,
            maximum=100_000,
        ),
    ] = 128
    tls_certificate: Annotated[
        Path | None, Option("Certificate chain for TLS, as a PEM file.", path="existing-file", metavar="FILE")
    ] = None
    tls_key: Annotated[
        Path | None, Option("Private key of that certificate, as a PEM file.", path="existing-file", metavar="FILE")
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Option(
            "Certificates of the authorities that sign those of clients, as a PEM file. Clients then need a certificate.",
            path="existing-file",
            metavar="FILE",
        ),
    ] = None
    api_key_file: Annotated[
        Path | None,
        Option(
            "File with one API key per line. Clients must send one of them in the header x-api-key or as a bearer token. The file "
            "is read again when it changes.",
            path="existing-file",
            metavar="FILE",
            former=("--api-keys",),
        ),
    ] = None
    grpc_max_connection_age: Annotated[
        float | None,
        Option(
            "Seconds after which a gRPC client is asked to connect anew, so that it finds servers that were added.",
            minimum=1,
            maximum=1_000_000,
        ),
    ] = None
    access_log: Annotated[
        Path | None, Option("File for the access log: one JSON object per request, without texts.", path="file", metavar="FILE")
    ] = None
