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
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from serving.errors import ServerError, TritonizeError
from serving.reporting import logger

MAX_REQUEST_BYTES = 2**16
READ_SECONDS = 5.0
"""How long a connection may take to send its request, in seconds."""
CLOSE_SECONDS = 10.0
"""How long requests that are handled may take to end when the socket is closed, in seconds."""
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

    @property
    def subject(self) -> str:
        """The name, and the generation if there is one, as a command has them."""
        return f"{self.name} {self.generation}".rstrip()


Handle = Callable[[ReleaseRequest, Callable[[str], None]], ReleaseResult]


class ControlSocket:
    """Listens while its block runs. Each connection has a thread of its own, so that none of them keeps others waiting."""

    def __init__(self, path: Path, handle: Handle) -> None:
        """Begin to listen at a path in a folder that only this user can enter.

        Args:
            path: Path of the socket.
            handle: Does what a request asks. It is called with the request, and with a function that takes a line about each step.
                Several threads may call it at the same time.
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
        """Listen no more, and wait until the requests that are handled now have ended, for at most :data:`CLOSE_SECONDS`."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.path.unlink(missing_ok=True)
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in tuple(self._server.handling):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("a release is still under way and is given up")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True  # a connection that sends nothing does not keep the process alive
    handle_release: Handle

    def __init__(self, path: str, handler: type[socketserver.BaseRequestHandler]) -> None:
        self.handling: set[threading.Thread] = set()
        super().__init__(path, handler)

    def handle_error(self, *_: object) -> None:
        """Log why a connection could not be served, such as too many threads. The next one may be."""
        logger.error(f"a connection to the control socket failed:\n{traceback.format_exc()}")


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Read a request, do what it asks, and answer."""
        try:
            request = _parse(self._read())
        except (OSError, TypeError, ValueError, RecursionError) as error:
            self._write({"error": f"the request is not understood: {error}", "hint": ""})
            return
        thread = threading.current_thread()
        self.server.handling.add(thread)
        try:
            self._write(self._reply(request))
        finally:
            self.server.handling.discard(thread)

    def _reply(self, request: ReleaseRequest) -> ReleaseResult:
        try:
            return {"result": self.server.handle_release(request, lambda line: self._write({"step": line}))}
        except TritonizeError as error:
            return {"error": error.message, "hint": error.hint}
        except Exception as error:
            logger.critical(traceback.format_exc())
            return {"error": f"{type(error).__name__}: {error}", "hint": "see the server's log"}

    def _read(self) -> bytes:
        """Read the line of the request.

        Raises:
            TimeoutError: It has not come in time.
            ValueError: It is too long.
        """
        deadline, line = time.monotonic() + READ_SECONDS, b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"it has not come within {READ_SECONDS:g} s")
            self.connection.settimeout(left)
            try:
                piece = self.connection.recv(MAX_REQUEST_BYTES + 1 - len(line))
            except TimeoutError:
                continue
            if not piece:
                break
            line += piece
            if len(line) > MAX_REQUEST_BYTES:
                raise ValueError(f"it is longer than {MAX_REQUEST_BYTES} bytes")
        self.connection.settimeout(READ_SECONDS)  # whoever asked and does not read keeps no release waiting for ever
        return line

    def _write(self, content: ReleaseResult) -> None:
        with contextlib.suppress(OSError):  # whoever asked has gone, and the work goes on
            self.wfile.write(json.dumps(content).encode() + b"\n")


def _parse(line: bytes) -> ReleaseRequest:
    """Read a request.

    Raises:
        TypeError, ValueError, RecursionError: It is none.
    """
    request = ReleaseRequest(**json.loads(line))
    if request.action not in get_args(Action):
        raise ValueError(f"no action is called {request.action!r}")
    return request


def ask_supervisor(path: Path, request: ReleaseRequest, tell: Callable[[str], None]) -> ReleaseResult:
    """Ask a supervisor to do something, and wait until it has done it.

    Args:
        path: Path of its socket.
        request: What to do.
        tell: Called with a line about each step.

    Raises:
        ServerError: It could not do it, or ended meanwhile.
        KeyboardInterrupt: The user does not wait any longer. The message says that the supervisor goes on.
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
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the server goes on with it: tritonize status shows what answers") from None
        except OSError as error:
            raise ServerError(f"the server does not answer: {error.strerror}", hint="see its log") from error
    raise ServerError("the server ended before it had finished", hint="see its log")
