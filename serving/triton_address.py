"""Where a tritonserver process listens, and plain HTTP requests to it."""

from __future__ import annotations

import http.client
import socket
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServerError, SetupError
from serving.options import ServerAddress

SOCKET_SCHEME = "unix:"
MAX_SOCKET_PATH = 100
"""Longest path of a Unix socket in bytes. Linux allows 107; gRPC appends its port."""


@dataclass(frozen=True, kw_only=True)
class TritonAddress:
    """Where a tritonserver process listens.

    Attributes:
        http: Base URL of the HTTP API: ``http://host:port``, or ``unix:`` and the path of a socket.
        grpc: Target of gRPC channels.
        metrics: Base URL of the metrics, as for ``http``.
        flags: Options of tritonserver.
    """

    http: str
    grpc: str
    metrics: str
    flags: tuple[str, ...]

    @property
    def is_private(self) -> bool:
        """Whether only this user can reach it."""
        return self.grpc.startswith(SOCKET_SCHEME)


def tcp_address(options: ServerAddress) -> TritonAddress:
    """Return the address of a server that clients reach directly.

    Raises:
        ServerError: The host has no address.
    """
    host = numeric_host(options.host)
    hosts = {"http": f"ipv6:{host}", "grpc": f"[{host}]", "metrics": f"ipv6:{host}"} if ":" in host else {}
    ports = {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}
    flags = [flag for name, port in ports.items() for flag in _flags(name, hosts.get(name, host), port)]
    return TritonAddress(
        http=options.base_url, grpc=options.grpc_url, metrics=options.metrics_url.removesuffix("/metrics"), flags=tuple(flags)
    )


def numeric_host(host: str) -> str:
    """Return the IP address of a host.

    Raises:
        ServerError: It has none.
    """
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ServerError(f"--host {host}: {error.strerror}", hint="give an address of this machine") from error


def socket_address(folder: Path) -> TritonAddress:
    """Return the address of a server behind the front. It listens on Unix sockets, which other users cannot reach.

    Args:
        folder: A folder that only this user can enter.

    Raises:
        SetupError: The path of the folder is too long for a Unix socket.
    """
    if len(str(folder / "metrics").encode()) > MAX_SOCKET_PATH:
        raise SetupError(f"{folder} is too long for the path of a Unix socket", hint="set TMPDIR to a folder with a shorter path")
    # Triton needs a port too: its gRPC server makes it a part of the path, the others ignore it.
    flags = [flag for name in ("http", "grpc", "metrics") for flag in _flags(name, f"{SOCKET_SCHEME}{folder / name}", 1)]
    return TritonAddress(
        http=f"{SOCKET_SCHEME}{folder / 'http'}",
        grpc=f"{SOCKET_SCHEME}{folder / 'grpc'}:1",
        metrics=f"{SOCKET_SCHEME}{folder / 'metrics'}",
        flags=tuple(flags),
    )


def _flags(name: str, host: str, port: int) -> list[str]:
    return [f"--{name}-address={host}", f"--{name}-port={port}"]


def fetch(base_url: str, path: str, body: bytes | None = None, *, timeout: float, method: str | None = None) -> tuple[int, bytes]:
    """Send one HTTP request to a server on this machine.

    Args:
        base_url: ``http://host:port``, or ``unix:`` and the path of a socket.
        path: Path of the URL.
        body: Body of the request, as JSON.
        timeout: Time limit of each step of the connection, in seconds.
        method: The method. None means POST with a body and GET without.

    Returns:
        The status and the body of the answer.

    Raises:
        OSError: No server answered in time.
    """
    connection = _connection(base_url, timeout)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"{base_url}{path}: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _connection(base_url: str, timeout: float) -> http.client.HTTPConnection:
    if base_url.startswith(SOCKET_SCHEME):
        return _SocketConnection(base_url.removeprefix(SOCKET_SCHEME), timeout)
    parts = urllib.parse.urlsplit(base_url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)


class _SocketConnection(http.client.HTTPConnection):
    """An HTTP connection through a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
