"""The supervisor: it starts a server, restarts it with the same models when it breaks, and drains it on request."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from serving.backlog import Backlog
from serving.control_socket import ControlSocket
from serving.errors import ArtifactError, ServerError, TritonizeError
from serving.front import UNPROTECTED, start_front
from serving.front.interface import Front
from serving.health import ServerHealth
from serving.health_options import WATCHED_DRAIN_SECONDS
from serving.health_port import HealthPort
from serving.isolation import raise_file_limit, temporary_prefix
from serving.options import ServeOptions
from serving.probe import find_probes
from serving.readiness import Readiness
from serving.releases import Releases
from serving.reporting import logger
from serving.served_view import ServedView, open_view
from serving.server import DRAIN_SECONDS, TritonServer, check_ports
from serving.server_naming import server_named
from serving.server_record import ServerRecord, recorded
from serving.stopping import GracePeriod, StopSignals, stop_signals
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

    It serves what the repository holds now, and what is promoted later, also after it was restarted.

    Args:
        options: The options of ``tritonize serve``.
        on_ready: Called once, with what is served, when every ensemble has answered for the first time.

    Raises:
        TritonizeError: The server could not be started, or was stopped before it was ready for the first time.
    """
    raise_file_limit()
    readiness = Readiness()
    with (
        server_named(options),
        stop_signals() as stopped,
        recorded(options) as record,
        HealthPort(options, readiness),
        _checked_view(options) as view,
        _logged(options, view),
        _checked_front(replace(options, repository=view.folder)) as front,
        _released(view, readiness, record) as (releases, control),
    ):
        record.update(served=str(view.folder), control=str(control) if front.triton.is_private else "")
        served = replace(options, repository=view.folder)
        Supervisor(served, view, front, record, readiness, releases, on_ready=on_ready).run(stopped)


class Supervisor:
    """Runs one server after another, all of the same models."""

    def __init__(
        self,
        options: ServeOptions,
        view: ServedView,
        front: Front,
        record: ServerRecord,
        readiness: Readiness,
        releases: Releases,
        *,
        on_ready: Callable[[ServedView], None],
    ) -> None:
        """Begin with what :func:`supervise` has opened. The repository of the options is the folder of the view."""
        self._options = options
        self._view = view
        self._front = front
        self._record = record
        self._readiness = readiness
        self._releases = releases
        self._on_ready = on_ready
        self._announced = False
        self._failed_starts = 0

    def run(self, stopped: StopSignals) -> None:
        """Serve until a signal has come.

        Raises:
            TritonizeError: The first start failed, or the server was stopped before it was ready.
        """
        is_checked = True
        while not stopped():
            server: TritonServer | None = None
            try:
                self._front.close()
                if not is_checked:
                    with self._releases.none_under_way():  # one that is has lost its server, and is undone
                        self._view.refresh()
                is_checked = False
                server = TritonServer(self._options, log=_log_triton, address=self._front.triton, is_checked=True)
                failure = self._serve_until_failure(server, stopped)
            except Exception as error:  # too many threads, for example: whatever it is may pass
                self._failed_starts += 1
                is_known = isinstance(error, TritonizeError | OSError)
                by_chance = is_known and server is not None and server.failed_by_chance and self._failed_starts < START_ATTEMPTS
                if not self._announced and not by_chance:
                    raise
                self._readiness.lose()
                if not is_known:
                    logger.critical(traceback.format_exc())
                failure = _reason(error)
            if not stopped():
                self._pause_before_restart(str(failure), stopped)
        if not self._announced:
            raise ServerError("stopped before it was ready")

    def _serve_until_failure(self, server: TritonServer, stopped: StopSignals) -> str | None:
        """Run a server, not yet started, until it must be restarted or is to stop; in the latter case drain it first.

        Returns:
            Why it must be restarted, or None if it was stopped.
        """

        def interrupted() -> bool:
            self._front.revive()
            return stopped()

        begun = time.monotonic()
        with server:
            server.wait_until_ready(interrupted)
            with contextlib.ExitStack() as ending:  # nobody is sent to this server any more, however it ends
                ending.callback(self._report, server, None)
                ending.callback(self._front.close)
                if not stopped():
                    self._front.open()
                    self._report(server, time.monotonic() - begun)
                failure = self._watch(server, stopped) or self._serve_on(server, stopped)
            if failure is None:
                logger.info("stopping: new requests are refused, those in flight are finished")
                self._front.wait_idle(DRAIN_SECONDS)
                server.drain()
                self._front.shut_down()
        return failure

    def _serve_on(self, server: TritonServer, stopped: StopSignals) -> str | None:
        """Go on serving for a while after a request to stop. Whoever watches the health port sends requests elsewhere meanwhile.

        Returns:
            Why the server ended before that time, or None.
        """
        was_ready = self._readiness.stop()
        seconds = self._options.drain_seconds
        if seconds is None:
            seconds = WATCHED_DRAIN_SECONDS if self._readiness.is_watched() else 0.0
        if not was_ready or not seconds:
            return None
        logger.info(f"stopping in {seconds:g} s: /readyz says 503, requests are still answered")
        self._front.release()
        return self._watch(server, GracePeriod(seconds, stopped))

    def _watch(self, server: TritonServer, stopped: Callable[[], bool]) -> str | None:
        """Watch a server that is ready.

        Returns:
            Why it must be restarted, or None if it is to stop.
        """
        front = self._front
        with contextlib.ExitStack() as closing:
            health = closing.enter_context(contextlib.closing(ServerHealth(server, self._readiness.answered)))
            backlog = None
            if front.most_in_flight is not None:
                backlog = closing.enter_context(contextlib.closing(Backlog(server, front.most_in_flight)))
            while not stopped():
                self._readiness.look()
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

    def _report(self, server: TritonServer, ready_seconds: float | None) -> None:
        """Record whether the server is ready, and how long that took in seconds."""
        self._releases.server = None if ready_seconds is None else server
        left_out = {name: error.message_with_hint for name, error in self._view.left_out.items()}
        self._record.update(ready=ready_seconds is not None, ready_seconds=ready_seconds, left_out=left_out)
        if ready_seconds is None:
            self._readiness.lose()
            return
        self._readiness.begin((probe.ensemble for probe in find_probes(self._view.folder)), left_out)
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

    def _pause_before_restart(self, failure: str, stopped: StopSignals) -> None:
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


def _reason(error: Exception) -> str:
    """Describe in one line why a server cannot go on."""
    if isinstance(error, ArtifactError):
        return error.message_with_hint  # nothing is left to serve
    if isinstance(error, TritonizeError):
        return error.message
    return describe(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _logged(options: ServeOptions, view: ServedView) -> Iterator[None]:
    """Report the start and the end of the supervisor."""
    served = f"{', '.join(probe.ensemble for probe in find_probes(view.folder))} of {options.repository.absolute()}"
    ports = {
        "HTTP": options.http_port,
        "gRPC": options.grpc_port,
        "metrics": options.metrics_port,
        "health": options.own_health_port,
    }
    listens = f"ports {', '.join(f'{port} ({kind})' for kind, port in ports.items())}"
    logger.info(f"starting: tritonize {version('tritonize')}, process {os.getpid()}, {served}, {listens}")
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
def _released(view: ServedView, readiness: Readiness, record: ServerRecord) -> Iterator[tuple[Releases, Path]]:
    """Take requests of the release commands. Yield what carries them out, and the path of the socket."""
    releases = Releases(view, readiness, record)
    with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
        path = Path(folder) / "control"
        with ControlSocket(path, releases.handle):
            yield releases, path


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
        is_open = not (options.tls_certificate and (options.api_key_file or options.tls_client_ca))
        secured = "; protect it with --tls-certificate and --api-key-file" if is_open else ""
        logger.warning(f"--host {options.host}: other machines can reach this server{secured}")
    with start_front(options, log=_log_envoy) as front:
        yield front


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
