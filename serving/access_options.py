"""Options by which clients show who they are, and know the server. Light, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from serving.option_fields import Option


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """API key and TLS of a client. The names of the fields are arguments of ``TritonPipeline`` too."""

    api_key_file: Annotated[
        Path | None,
        Option(
            "File whose first line is the API key for the server. It is read again when it changes.",
            path="existing-file",
            metavar="FILE",
            default_text="the environment variable TRITONIZE_API_KEY, if it is set",
        ),
    ] = None
    ssl: Annotated[
        bool, Option("Connect with TLS. The server's certificate is verified with the CAs of this machine.", flag="--tls")
    ] = False
    ca: Annotated[
        Path | None,
        Option(
            "Connect with TLS. The server's certificate is verified with the CAs in this PEM file.",
            flag="--tls-ca",
            path="existing-file",
            metavar="FILE",
        ),
    ] = None
    certificate: Annotated[
        Path | None,
        Option(
            "Certificate chain of this client, as a PEM file, for a server that asks for one.",
            flag="--tls-certificate",
            path="existing-file",
            metavar="FILE",
        ),
    ] = None
    key: Annotated[
        Path | None,
        Option("Private key of that certificate, as a PEM file.", flag="--tls-key", path="existing-file", metavar="FILE"),
    ] = None
