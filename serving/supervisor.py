"""Keeps a server answering: restarts it when it breaks, drains it when asked to stop, and lets another process find it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from serving.errors import ServerError, TritonizeError
from serving.options import ServeOptions
from serving.server import DRAIN_SECONDS, TritonServer

RESTARTS = 3
HEALTHY_SECONDS = 600
"""A server that answered this long gets its restarts back."""
POLL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that this user has running, as its keeper wrote it down.

    Args:
        pid: the keeper's process id; ``started`` when it began, seconds after the machine did, so that a recycled id is not
            mistaken for it, whatever becomes of the clock.
        ready: whether every ensemble has answered.
        ready_seconds: how long that took from starting tritonserver; None before.
    """

    pid: int
    started: float
    http_port: int
    repository: str
    ready: bool
    ready_seconds: float | None = None

    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(_started(process) - self.started) < 1
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def _started(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's. Clocks are set, as after a machine was suspended; this stays."""
    return float(process.create_time() - psutil.boot_time())


def supervise(options: ServeOptions, *, log: Callable[[str], None], on_ready: Callable[[TritonServer], None]) -> None:
    """Serve until SIGTERM or SIGINT; then drain and return.

    Args:
        log: gets the server's lines and what happens to it.
        on_ready: called once, when every ensemble answers for the first time.

    Raises:
        ServerError: the server could not be started, or broke more often than :data:`RESTARTS` times.
    """
    with _stop_signals() as stopped, _recorded(options) as record:
        restarts, announced = 0, False
        while True:
            begun = time.monotonic()
            with TritonServer(options, log=log) as server:
                server.wait_until_ready(stopped)
                since = time.monotonic()
                if not stopped():
                    record(ready=True, ready_seconds=since - begun)
                    if not announced:
                        on_ready(server)
                        announced = True
                failure = None
                while failure is None and not stopped():
                    time.sleep(POLL_SECONDS)
                    failure = server.failure()
                record(ready=False)
                if failure is None:
                    server.drain()
            if stopped():
                return
            restarts = 0 if time.monotonic() - since > HEALTHY_SECONDS else restarts
            restarts += 1
            if restarts > RESTARTS:
                raise ServerError(f"{failure}; restarted {RESTARTS} times already", hint="its log says why")
            log(f"tritonize: {failure}; restarting ({restarts} of {RESTARTS})")


def start_detached(options: ServeOptions) -> Path:
    """Start a keeper in the background and return when every ensemble answers.

    Returns:
        The log file.

    Raises:
        ServerError: it ended before it was ready.
    """
    _refuse_second(options.http_port)  # here already: the one that runs keeps its log
    log_path = state_folder() / f"{options.http_port}.log"
    payload = json.dumps(asdict(options) | {"repository": str(options.repository.absolute())})
    output = (os.POSIX_SPAWN_OPEN, 1, str(log_path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    keeper = os.posix_spawn(  # not subprocess: its Popen objects insist on outliving the child
        sys.executable,
        [sys.executable, "-P", "-m", "serving.supervisor", payload],
        os.environ,
        setsid=True,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), output, (os.POSIX_SPAWN_DUP2, 1, 2)],
    )
    try:
        while True:
            ended, _ = os.waitpid(keeper, os.WNOHANG)
            if ended:
                last = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                reason = last[-1].removeprefix("error: ") if last else "the server ended without a word"
                raise ServerError(reason, hint=f"its log is {log_path}")
            running = find_running(options.http_port)
            if running is not None and running.pid == keeper and running.ready:
                return log_path
            time.sleep(0.05)
    except KeyboardInterrupt:
        os.kill(keeper, signal.SIGTERM)
        os.waitpid(keeper, 0)
        raise


def find_running(http_port: int) -> Running | None:
    """The server this user runs at that port, or None."""
    try:
        running = Running(**json.loads(_state_file(http_port).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    return running if running.is_alive() else None


def stop(http_port: int) -> Running:
    """Drain and stop the server at that port.

    Raises:
        ServerError: none was started there by this user, or it does not end.
    """
    running = find_running(http_port)
    if running is None:
        raise ServerError(f"no server of yours runs at HTTP port {http_port}", hint="name its port with --http-port")
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + DRAIN_SECONDS + 30
    while running.is_alive():
        if time.monotonic() > deadline:
            raise ServerError(f"the server's keeper ({running.pid}) did not end", hint=f"end it with: kill -9 {running.pid}")
        time.sleep(0.05)
    (state_folder() / f"{http_port}.log").unlink(missing_ok=True)
    _remove_state(http_port)
    return running


def state_folder() -> Path:
    """Where keepers write down what they run: one private folder per user."""
    folder = Path(tempfile.gettempdir()) / f"tritonize-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ServerError(f"{folder} belongs to somebody else", hint="set TMPDIR to a folder of your own")
    return folder


def _state_file(http_port: int) -> Path:
    return state_folder() / f"{http_port}.json"


def _remove_state(http_port: int) -> None:
    _state_file(http_port).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others' servers may still be written down there
        state_folder().rmdir()


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGINT into a flag while the block runs: whoever holds the server drains it."""
    received: list[int] = []

    def remember(number: int, _: Any) -> None:
        received.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _recorded(options: ServeOptions) -> Iterator[Callable[..., None]]:
    """Write down that this process keeps a server, for as long as the block runs."""
    running = Running(
        pid=os.getpid(),
        started=_started(psutil.Process()),
        http_port=options.http_port,
        repository=str(options.repository),
        ready=False,
    )
    path = _state_file(options.http_port)

    def record(*, ready: bool, ready_seconds: float | None = None) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(replace(running, ready=ready, ready_seconds=ready_seconds))), encoding="utf-8")
        fresh.rename(path)

    _refuse_second(options.http_port)
    record(ready=False)
    try:
        yield record
    finally:
        kept = find_running(options.http_port)
        if kept is not None and kept.pid == os.getpid():  # not that of one that was started at the same moment, and won
            _remove_state(options.http_port)


def _refuse_second(http_port: int) -> None:
    other = find_running(http_port)
    if other is not None:
        raise ServerError(
            f"a server of yours runs at HTTP port {http_port} already (process {other.pid}, {other.repository})",
            hint=f"stop it with: tritonize stop --http-port {http_port}, or choose another --http-port",
        )


def main() -> int:
    """Entry of a keeper in the background: its options come as JSON, its words go to the log."""
    values = json.loads(sys.argv[1])
    options = ServeOptions(**values | {"repository": Path(values["repository"])})

    def log(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - this process's output is the log

    try:
        supervise(options, log=log, on_ready=lambda _: log("ready"))
    except TritonizeError as error:
        log(f"error: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
