"""The supervisor: it starts a server, restarts it with the same models when it breaks, and drains it on request."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from types import FrameType

from serving.backlog import Backlog
from serving.errors import ArtifactError, ServerError, TritonizeError
from serving.front import UNPROTECTED, start_front
from serving.front.interface import Front
from serving.health import ServerHealth
from serving.isolation import raise_file_limit
from serving.options import ServeOptions
from serving.probe import find_probes
from serving.reporting import logger
from serving.served_view import ServedView, open_view
from serving.server import DRAIN_SECONDS, TritonServer, check_ports
from serving.server_record import ServerRecord, recorded
from serving.triton_log import read_line
from serving.writing import describe

START_ATTEMPTS = 3
"""How often the first start is tried if it fails for a reason that may pass, as on a busy machine."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Pause after the second start in a row that failed, in seconds. It doubles with every further one, to the longest."""
POLL_SECONDS = 0.1
ENVOY_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


def supervise(options: ServeOptions, *, on_ready: Callable[[ServedView], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain the server and return. A server that fails is restarted, for ever.

    It serves what the repository holds now, also after it was restarted.

    Args:
        options: The options of ``tritonize serve``.
        on_ready: Called once, with what is served, when every ensemble has answered for the first time.

    Raises:
        TritonizeError: The server could not be started, or was stopped before it was ready for the first time.
    """
    raise_file_limit()
    with (
        _stop_signals() as stopped,
        recorded(options) as record,
        _checked_view(options) as view,
        _logged(options, view),
        _checked_front(replace(options, repository=view.folder)) as front,
    ):
        record.update(served=str(view.folder))
        Supervisor(replace(options, repository=view.folder), view, front, record, on_ready=on_ready).run(stopped)


class Supervisor:
    """Runs one server after another, all of the same models."""

    def __init__(
        self,
        options: ServeOptions,
        view: ServedView,
        front: Front,
        record: ServerRecord,
        *,
        on_ready: Callable[[ServedView], None],
    ) -> None:
        """Begin with what :func:`supervise` has opened. The repository of the options is the folder of the view."""
        self._options = options
        self._view = view
        self._front = front
        self._record = record
        self._on_ready = on_ready
        self._announced = False
        self._failed_starts = 0

    def run(self, stopped: Callable[[], bool]) -> None:
        """Serve until ``stopped`` returns True.

        Raises:
            TritonizeError: The first start failed, or the server was stopped before it was ready.
        """
        is_checked = True
        while not stopped():
            server: TritonServer | None = None
            try:
                self._front.close()
                if not is_checked:
                    self._view.refresh()
                is_checked = False
                server = TritonServer(self._options, log=_log_triton, address=self._front.triton, is_checked=True)
                failure = _serve_until_failure(server, self._front, stopped, self._report)
            except (TritonizeError, OSError) as error:  # a full disk or too many processes may pass, too
                self._failed_starts += 1
                by_chance = server is not None and server.failed_by_chance and self._failed_starts < START_ATTEMPTS
                if not self._announced and not by_chance:
                    raise
                if isinstance(error, OSError):
                    failure = describe(error)
                else:  # an ArtifactError: nothing is left to serve
                    failure = error.message_with_hint if isinstance(error, ArtifactError) else error.message
            if not stopped():
                self._pause_before_restart(str(failure), stopped)
        if not self._announced:
            raise ServerError("stopped before it was ready")

    def _report(self, ready_seconds: float | None) -> None:
        """Record whether the server is ready, and how long that took in seconds."""
        left_out = {name: error.message_with_hint for name, error in self._view.left_out.items()}
        self._record.update(ready=ready_seconds is not None, ready_seconds=ready_seconds, left_out=left_out)
        if ready_seconds is None:
            return
        self._failed_starts = 0
        logger.info(f"ready after {ready_seconds:.1f} s: {', '.join(probe.ensemble for probe in find_probes(self._view.folder))}")
        if self._announced:
            self._report_differences()
        else:
            self._on_ready(self._view)
            self._announced = True

    def _report_differences(self) -> None:
        """Say what the repository holds that is not served. It may be unreadable by now, which is no reason to stop."""
        try:
            differences = self._view.differences()
        except OSError as error:
            differences = [describe(error)]
        for difference in differences:
            logger.warning(difference)

    def _pause_before_restart(self, failure: str, stopped: Callable[[], bool]) -> None:
        """Say what happens next. A restart comes the later the more starts have failed in a row, and at once after none or one."""
        failed = self._failed_starts
        pause = 0.0 if failed < 2 else min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failed - 2))
        if self._announced:
            later = f" in {pause:g} s ({failed} starts have failed in a row)" if pause else ""
            logger.warning(f"{failure}; restarting{later}")
        else:
            logger.warning(f"{failure}; this may pass: trying again (start {failed + 1} of {START_ATTEMPTS})")
        deadline = time.monotonic() + pause
        while not stopped() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


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
            logger.info("stopping: new requests are refused, those in flight are finished")
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
def _logged(options: ServeOptions, view: ServedView) -> Iterator[None]:
    """Report the start and the end of the supervisor."""
    served = f"{', '.join(probe.ensemble for probe in find_probes(view.folder))} of {options.repository.absolute()}"
    ports = f"ports {options.http_port} (HTTP), {options.grpc_port} (gRPC), {options.metrics_port} (metrics)"
    logger.info(f"starting: tritonize {version('tritonize')}, process {os.getpid()}, {served}, {ports}")
    try:
        yield
    finally:
        logger.info(f"stopped: process {os.getpid()}")


def _log_triton(line: str) -> None:
    found = read_line(line)
    logger.log(found.level, found.text, extra={"source": "tritonserver"})


def _log_envoy(line: str) -> None:
    level, _, text = line.partition(" ")
    if level in ENVOY_LEVELS:
        logger.log(ENVOY_LEVELS[level], text, extra={"source": "envoy"})
    else:
        logger.info(line, extra={"source": "envoy"})


@contextlib.contextmanager
def _checked_view(options: ServeOptions) -> Iterator[ServedView]:
    check_ports(options)  # before every file is read
    with open_view(options.repository, strict=options.strict, verify_key=options.verify_key) as view:
        yield view


@contextlib.contextmanager
def _checked_front(options: ServeOptions) -> Iterator[Front]:
    if options.front == "none":
        logger.warning(UNPROTECTED)
    if not _is_loopback(options.host):
        secured = "" if options.tls_certificate and options.api_keys else "; protect it with --tls-certificate and --api-keys"
        logger.warning(f"--host {options.host}: other machines can reach this server{secured}")
    with start_front(options, log=_log_envoy) as front:
        yield front


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
