"""A Unix socket through which the commands of the same user ask a supervisor to load and unload models.

A request is one line of JSON. The answer is a line for each step of the work, and a last one with the result or the error.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from serving.errors import ServerError, TritonizeError
from serving.reporting import logger

MAX_REQUEST_BYTES = 2**16
Action = Literal["promote", "load", "unload", "states"]
ReleaseResult = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReleaseRequest:
    """What a command asks of a supervisor.

    Attributes:
        action: What to do.
        name: Name of the package.
        generation: The generation; empty: the newest one, or for ``unload`` that which clients call.
    """

    action: Action
    name: str = ""
    generation: str = ""


Handle = Callable[[ReleaseRequest, Callable[[str], None]], ReleaseResult]


class ControlSocket:
    """Listens while its block runs. Requests are handled one after another, in a thread of its own."""

    def __init__(self, path: Path, handle: Handle) -> None:
        """Begin to listen at a path in a folder that only this user can enter.

        Args:
            path: Path of the socket.
            handle: Does what a request asks. It is called with the request, and with a function that takes a line about each step.
        """
        self.path = path
        before = os.umask(0o177)
        try:
            self._server = _Server(str(path), _Handler)
        finally:
            os.umask(before)
        self._server.handle_release = handle
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the request that is handled now, and listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.path.unlink(missing_ok=True)


class _Server(socketserver.UnixStreamServer):
    handle_release: Handle


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Read a request, do what it asks, and answer."""
        try:
            request = ReleaseRequest(**json.loads(self.rfile.readline(MAX_REQUEST_BYTES)))
        except (TypeError, ValueError) as error:
            self._write({"error": f"the request is not understood: {error}", "hint": ""})
            return
        try:
            reply: dict[str, Any] = {"result": self.server.handle_release(request, lambda line: self._write({"step": line}))}
        except TritonizeError as error:
            reply = {"error": error.message, "hint": error.hint}
        except Exception as error:
            logger.critical(traceback.format_exc())
            reply = {"error": f"{type(error).__name__}: {error}", "hint": "see the server's log"}
        self._write(reply)

    def _write(self, content: ReleaseResult) -> None:
        with contextlib.suppress(OSError):  # whoever asked has gone, and the work goes on
            self.wfile.write(json.dumps(content).encode() + b"\n")


def ask_supervisor(path: Path, request: ReleaseRequest, tell: Callable[[str], None]) -> ReleaseResult:
    """Ask a supervisor to do something, and wait until it has done it.

    Args:
        path: Path of its socket.
        request: What to do.
        tell: Called with a line about each step.

    Raises:
        ServerError: It could not do it, or ended meanwhile.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(asdict(request)).encode() + b"\n")
            for line in connection.makefile("rb"):
                reply = json.loads(line)
                if "step" in reply:
                    tell(reply["step"])
                elif "error" in reply:
                    raise ServerError(reply["error"], hint=reply["hint"])
                else:
                    result: ReleaseResult = reply["result"]
                    return result
        except OSError as error:
            raise ServerError(f"the server does not answer: {error.strerror}", hint="see its log") from error
    raise ServerError("the server ended before it had finished", hint="see its log")
