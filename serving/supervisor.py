"""The supervisor process: it restarts a broken server, drains it on request, and records where other processes find it."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

import psutil
from pydantic import TypeAdapter

from serving.backlog import Backlog
from serving.errors import ServerError, TritonizeError
from serving.front import UNPROTECTED, start_front
from serving.front.interface import Front
from serving.health import ServerHealth
from serving.isolation import raise_file_limit
from serving.options import ServeOptions
from serving.reporting import LogLimit, logger, previous_log, report_to_stderr
from serving.server import DRAIN_SECONDS, TritonServer, check_ports
from serving.writing import describe

START_ATTEMPTS = 3
"""How often the first start is tried if a signal ended the server: Triton's start fails now and then by chance."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Pause after the second start in a row that failed, in seconds. It doubles with every further one, to the longest."""
POLL_SECONDS = 0.1
MAX_LOG_BYTES = 16 * 2**20
"""Size of the log of a server in the background at which a new one begins. The one before is kept."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """The record of a server that this user runs, written by its supervisor.

    Attributes:
        pid: Process id of the supervisor.
        started: Start of the supervisor in seconds after the machine's start. It tells the supervisor from a later process with
            the same id, even if the clock was set.
        http_port: The server's HTTP port.
        repository: The folder of the served model repository.
        ready: Whether every ensemble has answered.
        ready_seconds: Time from the start of tritonserver until then, in seconds. None before.
    """

    pid: int
    started: float
    http_port: int
    repository: str
    ready: bool
    ready_seconds: float | None = None

    def is_alive(self) -> bool:
        """Return whether that process still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(_started(process) - self.started) < 1
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def _started(process: psutil.Process) -> float:
    """Return the time from the machine's start to the process's, in seconds. Setting the clock does not change it."""
    return float(process.create_time() - psutil.boot_time())


def supervise(options: ServeOptions, *, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain the server and return. A server that fails is restarted, for ever.

    Args:
        options: The options of ``tritonize serve``.
        on_ready: Called once, when every ensemble has answered for the first time.

    Raises:
        TritonizeError: The server could not be started, or was stopped before it was ready for the first time.
    """
    raise_file_limit()
    with (
        _stop_signals() as stopped,
        _recorded(options) as record,
        _checked_front(options) as front,
    ):
        announced, failed_starts = False, 0

        def report(ready_seconds: float | None) -> None:
            nonlocal announced, failed_starts
            record(ready_seconds)
            if ready_seconds is None:
                return
            failed_starts = 0
            if not announced:
                on_ready()
                announced = True

        while not stopped():
            server: TritonServer | None = None
            try:
                front.close()
                server = TritonServer(options, log=logger.info, address=front.triton)
                failure = _serve_until_failure(server, front, stopped, report)
            except (TritonizeError, OSError) as error:  # a full disk or too many processes may pass, too
                failed_starts += 1
                by_chance = server is not None and server.was_killed and failed_starts < START_ATTEMPTS
                if not announced and not by_chance:
                    raise
                failure = error.message if isinstance(error, TritonizeError) else describe(error)
            if not stopped():
                _pause_before_restart(str(failure), failed_starts, stopped)
        if not announced:
            raise ServerError("stopped before it was ready")


def _serve_until_failure(
    server: TritonServer, front: Front, stopped: Callable[[], bool], report: Callable[[float | None], None]
) -> str | None:
    """Run a server until it must be restarted or is to stop; in the latter case drain it first.

    Args:
        server: The server, not yet started.
        front: The front, closed.
        stopped: Whether the server is to stop.
        report: Called when it is ready, with the time that it took in seconds, and when it is not any more, with None.

    Returns:
        Why it must be restarted, or None if it was stopped.
    """

    def interrupted() -> bool:
        front.revive()
        return stopped()

    begun = time.monotonic()
    with server:
        server.wait_until_ready(interrupted)
        if not stopped():
            front.open()
            report(time.monotonic() - begun)
        failure = _watch(server, front, stopped)
        front.close()
        report(None)
        if failure is None:
            front.wait_idle(DRAIN_SECONDS)
            server.drain()
            front.shut_down()
    return failure


def _watch(server: TritonServer, front: Front, stopped: Callable[[], bool]) -> str | None:
    """Watch a server that is ready.

    Returns:
        Why it must be restarted, or None if it is to stop.
    """
    with contextlib.ExitStack() as closing:
        health = closing.enter_context(contextlib.closing(ServerHealth(server)))
        backlog = None
        if front.most_in_flight is not None:
            backlog = closing.enter_context(contextlib.closing(Backlog(server, front.most_in_flight)))
        while not stopped():
            alarm = front.wait_for_alarm(POLL_SECONDS)
            front.revive()
            if backlog is not None:
                front.hold(on=backlog.is_too_long())
            failure = alarm or server.failure() or health.failure()
            if failure is not None:
                front.close()
                server.fail(failure)
                return f"tritonserver {failure}"
    return None


@contextlib.contextmanager
def _checked_front(options: ServeOptions) -> Iterator[Front]:
    check_ports(options)
    if options.front == "none":
        logger.warning(UNPROTECTED)
    if not _is_loopback(options.host):
        secured = "" if options.tls_certificate and options.api_keys else "; protect it with --tls-certificate and --api-keys"
        logger.warning(f"--host {options.host}: other machines can reach this server{secured}")
    with start_front(options, log=logger.info) as front:
        yield front


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pause_before_restart(failure: str, failed_starts: int, stopped: Callable[[], bool]) -> None:
    """Say that the server is restarted. It is at once if it was ready, and the later the more starts have failed in a row."""
    pause = 0.0 if failed_starts < 2 else min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failed_starts - 2))
    logger.warning(f"{failure}; restarting" + (f" in {pause:g} s ({failed_starts} starts have failed in a row)" if pause else ""))
    deadline = time.monotonic() + pause
    while not stopped() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def start_detached(options: ServeOptions) -> Path:
    """Start a supervisor in the background and wait until every ensemble answers.

    Returns:
        The log file.

    Raises:
        ServerError: The server ended before it was ready, or one already runs at the same port.
    """
    _refuse_second(options.http_port)  # before the log of a running server is overwritten
    log_path = _log_file(options.http_port)
    payload = json.dumps(asdict(options), default=lambda path: str(path.absolute()))
    output = (os.POSIX_SPAWN_OPEN, 1, str(log_path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    supervisor = os.posix_spawn(  # subprocess.Popen would warn about a child that outlives this process
        sys.executable,
        [sys.executable, "-P", "-m", "serving.supervisor", payload],
        os.environ,
        setsid=True,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), output, (os.POSIX_SPAWN_DUP2, 1, 2)],
    )
    try:
        while True:
            ended, _ = os.waitpid(supervisor, os.WNOHANG)
            if ended:
                last = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                reason = last[-1].removeprefix("error: ") if last else "the server ended without a message"
                raise ServerError(reason, hint=f"see its log: {log_path}")
            running = find_running(options.http_port)
            if running is not None and running.pid == supervisor and running.ready:
                return log_path
            time.sleep(0.05)
    except KeyboardInterrupt:
        os.kill(supervisor, signal.SIGTERM)
        os.waitpid(supervisor, 0)
        raise


def find_running(http_port: int) -> Running | None:
    """Return the server that this user runs at that port, or None."""
    try:
        running = Running(**json.loads(_state_file(http_port).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    return running if running.is_alive() else None


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
    deadline = time.monotonic() + 2 * DRAIN_SECONDS + 30  # the proxy drains, then Triton
    while running.is_alive():
        if time.monotonic() > deadline:
            raise ServerError(f"the server's process {running.pid} did not end", hint=f"end it with: kill -9 {running.pid}")
        time.sleep(0.05)
    for log in (_log_file(http_port), previous_log(_log_file(http_port))):
        log.unlink(missing_ok=True)
    _remove_state(http_port)
    return running


def state_folder() -> Path:
    """Return the folder with the records of this user's servers. Only this user can read it.

    Raises:
        ServerError: The folder belongs to another user.
    """
    folder = Path(tempfile.gettempdir()) / f"tritonize-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ServerError(f"{folder} belongs to another user", hint="set TMPDIR to a folder of your own")
    return folder


def _state_file(http_port: int) -> Path:
    return state_folder() / f"{http_port}.json"


def _log_file(http_port: int) -> Path:
    return state_folder() / f"{http_port}.log"


def _remove_state(http_port: int) -> None:
    _state_file(http_port).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it may still hold the records of other servers
        state_folder().rmdir()


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Record SIGTERM and SIGINT while the block runs, instead of being ended by them. Yield whether one has come."""
    received: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _recorded(options: ServeOptions) -> Iterator[Callable[[float | None], None]]:
    """Keep a record of this process's server while the block runs.

    Yield a function that updates it. Its argument is the time that the server took to become ready, in seconds, or None if it
    is not ready.
    """
    running = Running(
        pid=os.getpid(),
        started=_started(psutil.Process()),
        http_port=options.http_port,
        repository=str(options.repository),
        ready=False,
    )
    path = _state_file(options.http_port)

    def record(ready_seconds: float | None) -> None:
        state = replace(running, ready=ready_seconds is not None, ready_seconds=ready_seconds)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(state)), encoding="utf-8")
        temporary.rename(path)

    _refuse_second(options.http_port)
    record(None)
    try:
        yield record
    finally:
        recorded = find_running(options.http_port)
        if (
            recorded is not None and recorded.pid == os.getpid()
        ):  # a server that was started at the same moment may have replaced it
            _remove_state(options.http_port)


def _refuse_second(http_port: int) -> None:
    other = find_running(http_port)
    if other is not None:
        raise ServerError(
            f"you already have a server at HTTP port {http_port} (process {other.pid}, {other.repository})",
            hint=f"stop it with: tritonize stop --http-port {http_port}, or choose another --http-port",
        )


def main() -> int:
    """Run a supervisor in the background. Its options come as JSON on the command line, and its output goes to the log."""
    options = TypeAdapter(ServeOptions).validate_json(sys.argv[1])
    with report_to_stderr():
        logger.addHandler(LogLimit(_log_file(options.http_port), max_bytes=MAX_LOG_BYTES))
        try:
            supervise(options, on_ready=lambda: logger.info("ready"))
        except TritonizeError as error:
            logger.error(error.message + (f" ({error.hint})" if error.hint else ""))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
