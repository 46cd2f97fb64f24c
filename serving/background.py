"""Servers in the background: starting and stopping one, and the program that is its supervisor."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from serving.errors import ServerError, TritonizeError
from serving.log_format import OWN, LogLine, read_log_line, write_log
from serving.options import ServeOptions
from serving.reporting import LogLimit, logger, report_to_stderr
from serving.server import DRAIN_SECONDS
from serving.server_record import Running, find_running, log_file, refuse_second, remove_record
from serving.supervisor import supervise

MAX_LOG_BYTES = 16 * 2**20
"""Size of the log of a server in the background at which a new one begins."""


def start_detached(options: ServeOptions) -> Running:
    """Start a supervisor in the background and wait until every ensemble answers.

    Returns:
        The record of the server.

    Raises:
        ServerError: The server ended before it was ready, or one already runs at the same port.
    """
    refuse_second(options.http_port)  # before the log of a running server is overwritten
    log_path = log_file(options.http_port)
    begun = log_path.stat().st_size if log_path.exists() else 0
    payload = json.dumps(asdict(options), default=lambda path: str(path.absolute()))
    output = (os.POSIX_SPAWN_OPEN, 1, str(log_path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    supervisor = os.posix_spawn(  # subprocess.Popen would warn about a child that outlives this process
        sys.executable,
        [sys.executable, "-P", "-m", "serving.background", payload],
        os.environ,
        setsid=True,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), output, (os.POSIX_SPAWN_DUP2, 1, 2)],
    )
    try:
        while True:
            ended, _ = os.waitpid(supervisor, os.WNOHANG)
            if ended:
                *before, last = _lines(log_path, begun) or [read_log_line("")]
                _repeat(before)
                reason = last.message.splitlines()[-1] if last.message else "the server ended without a message"
                raise ServerError(reason, hint=f"see its log: {log_path}")
            running = find_running(options.http_port)
            if running is not None and running.pid == supervisor and running.ready:
                _repeat(_lines(log_path, begun))
                return running
            time.sleep(0.05)
    except KeyboardInterrupt:
        os.kill(supervisor, signal.SIGTERM)
        os.waitpid(supervisor, 0)
        raise


def _lines(log: Path, begun: int) -> list[LogLine]:
    """Return the lines of a log from a position on. If a new file has begun meanwhile, return all of it."""
    content = log.read_bytes()
    text = content[begun if begun <= len(content) else 0 :].decode(errors="replace")
    return [read_log_line(line) for line in text.strip().splitlines()]


def _repeat(lines: Iterable[LogLine]) -> None:
    """Repeat the warnings and errors of a supervisor itself: what it left out, and starts that failed."""
    for line in lines:
        if line.source == OWN and line.level in (logging.WARNING, logging.ERROR):
            logger.log(line.level, line.message)


def stop(http_port: int) -> Running:
    """Drain and stop the server at that port.

    Returns:
        The record of the stopped server.

    Raises:
        ServerError: This user runs no server at that port, or the server does not end.
    """
    running = find_running(http_port)
    if running is None:
        raise ServerError(f"you have no server at HTTP port {http_port}", hint="give its port with --http-port")
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + running.drain_seconds + 2 * DRAIN_SECONDS + 30  # the proxy drains, then Triton
    while running.is_alive():
        if time.monotonic() > deadline:
            raise ServerError(f"the server's process {running.pid} did not end", hint=f"end it with: kill -9 {running.pid}")
        time.sleep(0.05)
    remove_record(http_port)
    return running


def main() -> int:
    """Run a supervisor in the background. Its options come as JSON on the command line, and its output goes to the log."""
    options = TypeAdapter(ServeOptions).validate_json(sys.argv[1])
    with report_to_stderr():
        logger.addHandler(LogLimit(log_file(options.http_port), max_bytes=MAX_LOG_BYTES))
        write_log(options.log_format)
        try:
            supervise(options, on_ready=lambda _: None)
        except TritonizeError as error:
            logger.error(error.message_with_hint)
            return 1
        except Exception:
            logger.critical(traceback.format_exc())
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
