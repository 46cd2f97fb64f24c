"""A collector of OpenTelemetry traces in this process, as OTLP over HTTP sends them in JSON."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Span:
    """A span that has arrived."""

    trace: str
    span: str
    parent: str
    name: str
    service: str
    attributes: dict[str, str]


class Collector:
    """Listens at a free port while its block runs."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._take))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait(self, trace: str, count: int) -> list[Span]:
        """Wait for that many spans of a trace, and return all there are of it. Triton sends them every five seconds."""
        deadline = time.monotonic() + 60
        while len(found := [span for span in self.spans if span.trace == trace]) < count:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found

    def _take(self, body: bytes) -> None:
        for resource in json.loads(body)["resourceSpans"]:
            service = _attributes(resource["resource"])["service.name"]
            for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
                self.spans.append(
                    Span(
                        trace=span["traceId"],
                        span=span["spanId"],
                        parent=span.get("parentSpanId", ""),
                        name=span["name"],
                        service=service,
                        attributes=_attributes(span),
                    )
                )


def _attributes(of: dict[str, Any]) -> dict[str, str]:
    return {entry["key"]: str(next(iter(entry["value"].values()))) for entry in of.get("attributes", [])}


def _handler(take: Any) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    return Handler
