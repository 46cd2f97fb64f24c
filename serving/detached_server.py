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
        log: Its log file.
    """

    address: ServerAddress
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
        """Drain and stop the server.

        Raises:
            ServerError: It does not run any more, or does not end.
        """
        from serving.background import stop

        stop(self.address.http_port)

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the server."""
        self.stop()
