"""The health port: ``/livez``, ``/startupz`` and ``/readyz`` over HTTP, for orchestrators and proxies; ``/metrics`` for Prometheus.

It answers from the first moment of the start to the end of the process, whatever the server does meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from serving.errors import ServerError
from serving.options import ServeOptions
from serving.readiness import HealthReport, Readiness
from serving.reporting import logger
from serving.supervisor_metrics import CONTENT_TYPE
from serving.triton_address import numeric_host

MAX_CONNECTIONS = 64
"""Connections at the same time. If there are more, the oldest one is closed."""
CONNECTION_SECONDS = 5
"""How long a client may send nothing, in seconds."""
METRICS = "/metrics"
END_SECONDS = 0.05
"""How often the thread looks whether it is to end, in seconds."""


class HealthPort:
    """Answers health checks in a thread while its block runs."""

    def __init__(self, options: ServeOptions, readiness: Readiness) -> None:
        """Check the port.

        Args:
            options: The options of ``tritonize serve``.
            readiness: What the answers say.

        Raises:
            ServerError: The port is that of another interface of the server, or no port.
        """
        others = (options.http_port, options.grpc_port, options.metrics_port)
        if options.own_health_port in others or options.own_health_port > 65535:
            raise ServerError(
                f"{options.own_health_port} cannot be the port of the health checks too", hint="choose one with --health-port"
            )
        self._host, self._port = numeric_host(options.host), options.own_health_port
        self._readiness = readiness

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            ServerError: The port is occupied, or the address does not belong to this machine.
        """
        try:
            self._server = _HealthServer((self._host, self._port), self._readiness)
        except OSError as error:
            raise ServerError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}", hint="choose another port with --health-port"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=[END_SECONDS], name="health port", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _HealthServer(ThreadingHTTPServer):
    """An HTTP server with a thread for each connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], readiness: Readiness) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._open: dict[socket.socket, None] = {}
        self._readiness = readiness
        self.reports: dict[str, Callable[[], HealthReport]] = {
            "/livez": readiness.live,
            "/startupz": readiness.started,
            "/readyz": readiness.ready,
        }
        super().__init__(address, _HealthHandler)

    def server_bind(self) -> None:
        """Bind without looking up the host's name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def report(self, path: str) -> HealthReport | None:
        """Return the answer at a path; None if there is nothing."""
        report = self.reports.get(path)
        if report is None:
            return None
        self._readiness.was_asked()
        return report()

    def metrics(self) -> str:
        """Return the page of Prometheus. Who reads it does not watch the health."""
        return self._readiness.metrics()

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Answer in a thread. If there are too many connections, the oldest one is closed: slow clients keep nobody out."""
        assert isinstance(request, socket.socket)
        self._open[request] = None
        if len(self._open) > MAX_CONNECTIONS:
            oldest = next(iter(self._open.copy()))
            self._open.pop(oldest, None)
            with contextlib.suppress(OSError):  # it has just been closed
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Close a connection."""
        assert isinstance(request, socket.socket)
        self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the names are socketserver's
        """Log an error, unless the client left early or was too slow."""
        error = sys.exception()
        if not isinstance(error, OSError):
            logger.error(f"a health check failed: {error!r}")


class _HealthHandler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _HealthServer
    timeout = CONNECTION_SECONDS
    server_version, sys_version = "tritonize", ""

    def do_GET(self) -> None:
        """Answer with 200 if the check passes, and with 503 otherwise."""
        path = self.path.partition("?")[0]
        report = self.server.report(path)
        if report is not None:
            self._send(200 if report.is_ok else 503, json.dumps(report.content))
        elif path == METRICS:
            self._send(200, self.server.metrics(), CONTENT_TYPE)
        else:
            paths = ", ".join(self.server.reports)
            self._send(404, json.dumps({"error": f"there is nothing at this path: health is at {paths}; metrics are at {METRICS}"}))

    do_HEAD = do_GET  # noqa: N815 - the name is http.server's

    def _send(self, status: int, text: str, content_type: str = "application/json") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing: health checks come every few seconds."""
