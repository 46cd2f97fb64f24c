"""API keys and TLS files for the proxy. They may be exchanged while it runs: it then uses the new ones within some seconds.

The proxy does not read the user's files, which could be half written. What is in them is checked, and copied into its private
folder.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serving.access import no_password
from serving.api_keys import file_signature, read_api_keys
from serving.errors import SetupError, TritonizeError
from serving.front.envoy_fields import EnvoyFields, type_url
from serving.front_options import FrontOptions
from serving.reporting import logger

LOOK_SECONDS = 1.0
"""How often the files are looked at, in seconds."""
API_KEYS, CERTIFICATE, CLIENT_CA = "api_keys", "certificate.json", "client_ca.json"
"""Names of the copies."""


@dataclass(kw_only=True)
class _Secret:
    """One copy.

    Attributes:
        name: Its name.
        sources: The user's files.
        read: Returns the content of the copy. Raises SetupError if the files cannot be used.
        content: What it returned when it last succeeded.
        seen: The signatures of the files when they were last read.
    """

    name: str
    sources: tuple[Path, ...]
    read: Callable[[], str]
    content: str = field(init=False, repr=False)
    seen: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        self.refresh()

    def has_changed(self) -> bool:
        return self.seen != tuple(map(file_signature, self.sources))

    def refresh(self) -> None:
        self.seen = tuple(map(file_signature, self.sources))
        self.content = self.read()

    def write(self, folder: Path) -> None:
        """Write the copy. It is moved into its place, which is what Envoy looks for."""
        path = folder / f"{self.name}.new"
        path.touch(mode=0o600)
        path.write_text(self.content, encoding="utf-8")
        path.rename(folder / self.name)


class FrontSecrets:
    """The API keys and TLS files that the options name, copied into a folder."""

    def __init__(self, options: FrontOptions, folder: Path) -> None:
        """Read and copy the files.

        Args:
            options: The options of the proxy.
            folder: A folder that only this user can enter.

        Raises:
            SetupError: The options contradict each other, or a file cannot be used.
        """
        self._folder = folder
        self._secrets = list(_secrets(options))
        self._next_look = time.monotonic() + LOOK_SECONDS
        for secret in self._secrets:
            secret.write(folder)

    def path(self, name: str) -> Path | None:
        """Return the copy of that name; None if the options name no file for it."""
        return self._folder / name if any(secret.name == name for secret in self._secrets) else None

    def follow(self) -> None:
        """Copy again what has changed. What cannot be used is reported, and the proxy keeps what it has."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        for secret in self._secrets:
            if not secret.has_changed():
                continue
            before = secret.content
            try:
                secret.refresh()
                if secret.content != before:
                    secret.write(self._folder)
                    logger.info(f"{' and '.join(map(str, secret.sources))} changed: the new content is used from now on")
            except (TritonizeError, OSError) as error:
                reason = error.message_with_hint if isinstance(error, TritonizeError) else str(error)
                logger.error(f"{reason}; what was read before stays in use")


def _secrets(options: FrontOptions) -> Iterator[_Secret]:
    """Read the files that the options name.

    Raises:
        SetupError: The options contradict each other, or a file cannot be used.
    """
    certificate, key, client_ca, api_keys = options.tls_certificate, options.tls_key, options.tls_client_ca, options.api_key_file
    if (certificate is None) != (key is None):
        raise SetupError("TLS needs a certificate and its key", hint="give both --tls-certificate and --tls-key")
    if client_ca is not None and certificate is None:
        raise SetupError("--tls-client-ca has no effect without TLS", hint="give --tls-certificate and --tls-key too")
    if api_keys is not None:
        yield _Secret(name=API_KEYS, sources=(api_keys,), read=lambda: "\n".join(read_api_keys(api_keys)))
    if certificate is not None and key is not None:
        yield _Secret(name=CERTIFICATE, sources=(certificate, key), read=lambda: _certificate(certificate, key))
    if client_ca is not None:
        yield _Secret(name=CLIENT_CA, sources=(client_ca,), read=lambda: _authorities(client_ca))


def _certificate(certificate: Path, key: Path) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=no_password)
        chain, private_key = certificate.read_text(encoding="utf-8"), key.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SetupError(
            f"cannot use the TLS certificate {certificate} with the key {key}: {error}", hint="give PEM files that belong together"
        ) from error
    return _sds("tls_certificate", {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": private_key}})


def _authorities(path: Path) -> str:
    try:
        ssl.create_default_context(cafile=path)
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SetupError(f"cannot use the certificates in {path}: {error}", hint="give a PEM file of certificates") from error
    return _sds("validation_context", {"trusted_ca": {"inline_string": content}})


def _sds(kind: str, content: EnvoyFields) -> str:
    """Return a file that Envoy reads a secret from, and reads again when another file is moved into its place."""
    secret = {"@type": type_url("transport_sockets.tls.v3.Secret"), "name": kind, kind: content}
    return json.dumps({"resources": [secret]})


def sds_source(path: Path, kind: str) -> EnvoyFields:
    """Return where Envoy finds a secret.

    Args:
        path: The file.
        kind: ``tls_certificate`` or ``validation_context``.
    """
    return {"name": kind, "sds_config": {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}}
