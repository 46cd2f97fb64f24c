"""How a client shows who it is and knows the server: its API key, and its files for TLS."""

from __future__ import annotations

import os
import ssl as tls
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.api_keys import ApiKeyFile
from serving.errors import SetupError
from serving.reporting import logger

API_KEY_VARIABLE = "TRITONIZE_API_KEY"
"""Environment variable of the API key. A key on a command line could be read by every user of the machine."""
API_KEY_HEADER = "x-api-key"
GRPC_KEY_HEADER = f"triton-grpc-protocol-{API_KEY_HEADER}"
"""Where Triton itself looks for the key of a restricted protocol over gRPC, see :mod:`serving.restricted_api`."""
FilePath = str | os.PathLike[str]


class ClientAccess:
    """API key and TLS of a client.

    Attributes:
        tls: Its TLS; None if its connections have none.
    """

    def __init__(
        self,
        *,
        ssl: bool | FilePath = False,
        ca: FilePath | None = None,
        certificate: FilePath | None = None,
        key: FilePath | None = None,
        api_key: str | None = None,
        api_key_file: FilePath | None = None,
    ) -> None:
        """Read the files. The arguments are those of ``TritonPipeline``.

        Args:
            ssl: Use TLS. The server's certificate is verified: with the CAs of this machine (OpenSSL's file of them, or
                ``SSL_CERT_FILE``), or with those in a PEM file.
            ca: The same PEM file, which means TLS too.
            certificate: PEM file of the certificate chain of this client, for a server that asks for one.
            key: PEM file of its private key.
            api_key: The API key.
            api_key_file: A file whose first key is the API key. It is read again when it changes. Without both: the environment
                variable ``TRITONIZE_API_KEY``, if it is set.

        Raises:
            SetupError: The file of the API key holds no key, or other users can read it.
            ValueError: Arguments contradict each other, a file is not PEM, or the API key cannot stand in a header.
        """
        if api_key is not None and api_key_file is not None:
            raise ValueError("give api_key or api_key_file, not both")
        self.tls = _client_tls(ssl, ca, certificate, key)
        self._key_file = None if api_key_file is None else ApiKeyFile(Path(api_key_file))
        if self._key_file is not None:
            api_key = self._key_file.keys[0]
        self._headers = _headers(os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key)

    def headers(self, protocol: str) -> dict[str, str]:
        """Return the headers of the next request over ``grpc`` or ``http``; empty if there is no API key."""
        if self._key_file is not None:
            try:
                if self._key_file.refresh():
                    self._headers = _headers(self._key_file.keys[0])
            except SetupError as error:  # perhaps it is being written
                logger.warning(f"{error.message_with_hint}; the API key that was read before stays in use")
        return self._headers[protocol]


def _headers(api_key: str | None) -> dict[str, dict[str, str]]:
    """Return the headers with an API key for each protocol; they are empty if there is none.

    Raises:
        ValueError: The API key cannot stand in a header. The message does not show it.
    """
    if not api_key:
        return {"http": {}, "grpc": {}}
    if not (api_key.isascii() and api_key.isprintable() and api_key == api_key.strip()):
        raise ValueError(f"the API key (api_key or {API_KEY_VARIABLE}) must be printable ASCII without spaces around it")
    return {"http": {API_KEY_HEADER: api_key}, "grpc": {API_KEY_HEADER: api_key, GRPC_KEY_HEADER: api_key}}


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """TLS of a client.

    Attributes:
        context: How HTTPS connections are made.
        ca: File of the CAs; None: this machine has no such file, and gRPC trusts its own list.
        certificate: File of the client's certificate chain; None: it has none.
        key: File of its private key.
    """

    context: tls.SSLContext
    ca: FilePath | None
    certificate: FilePath | None
    key: FilePath | None

    @property
    def grpc_arguments(self) -> dict[str, Any]:
        """The arguments of tritonclient's gRPC client."""
        return {"ssl": True, "root_certificates": self.ca, "certificate_chain": self.certificate, "private_key": self.key}


def _client_tls(ssl: bool | FilePath, ca: FilePath | None, certificate: FilePath | None, key: FilePath | None) -> ClientTls | None:
    """Return the TLS of a client; None if its connections have none.

    Raises:
        ValueError: A file is no such PEM file, or the arguments contradict each other.
    """
    wanted = "ca must be"
    if not isinstance(ssl, bool):
        if ca is not None:
            raise ValueError("ssl and ca are two files of CAs: give one")
        ca, ssl, wanted = ssl, True, "ssl must be True, False or"
    if (certificate is None) != (key is None):
        raise ValueError("a certificate of the client needs its key: give certificate and key")
    if not ssl and ca is None and certificate is None:
        return None
    try:
        context = tls.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError too
        raise ValueError(f"{wanted} a PEM file of certificates, not {str(ca)!r}: {error}") from None
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=no_password)
        except (OSError, ValueError) as error:
            raise ValueError(f"certificate and key must be PEM files that belong together: {error}") from None
    return ClientTls(context=context, ca=ca or tls.get_default_verify_paths().cafile, certificate=certificate, key=key)


def no_password() -> str:
    """Stand for the password of a private key, which nobody is asked for.

    Raises:
        ValueError: Always.
    """
    raise ValueError("the private key has a password")
