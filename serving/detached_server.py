"""A server in the background, as Python code holds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.options import ServerAddress


@dataclass(frozen=True, kw_only=True)
class DetachedServer:
    """A server that runs in the background. Leaving its ``with`` block stops it.

    Attributes:
        address: Where it listens.
        process: Process id of its supervisor.
        log: Its log file.
    """

    address: ServerAddress
    process: int
    log: Path

    @property
    def grpc_url(self) -> str:
        """``HOST:PORT`` for gRPC clients, such as ``TritonPipeline(…, url=…)``."""
        return self.address.grpc_url

    @property
    def http_url(self) -> str:
        """``HOST:PORT`` for HTTP clients, such as ``TritonPipeline(…, url=…, protocol="http")``."""
        return self.address.base_url.removeprefix("http://")

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics."""
        return self.address.metrics_url

    def stop(self) -> None:
        """Drain and stop the server. Nothing happens if it has ended already.

        Raises:
            ServerError: It does not end.
        """
        from serving.background import stop
        from serving.server_record import find_running

        running = find_running(self.address.http_port)
        if running is not None and running.pid == self.process:  # otherwise another server has the port by now
            stop(self.address.http_port)

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the server."""
        self.stop()
