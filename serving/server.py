"""One tritonserver process: start it, wait until it answers, drain it and remove what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

from serving.errors import RequestError, ServerError
from serving.install import Install, find_install, prepare_backends, server_environment
from serving.integrity import check_repository
from serving.isolation import (
    describe_exit,
    describe_zombie,
    die_with_parent,
    keep_shared_memory_private,
    remains_removed,
    remove_abandoned_files,
    start_process,
    temporary_prefix,
)
from serving.layout import path_parts, startup_models
from serving.machine import has_gpu
from serving.options import ServeOptions, ServerAddress
from serving.probe import Traffic, ask, check_answers, find_probes, is_ready, read_traffic
from serving.restricted_api import CLOSED_HEADER
from serving.tracing import trace_flags
from serving.triton_address import SOCKET_SCHEME, TritonAddress, tcp_address
from serving.triton_log import failure_reason, is_noise, is_passing, read_line

POLL_SECONDS = 0.1
PROBE_SECONDS = 15
"""Time limit of one probe in seconds. A request to stop waits for the probe to end."""
RESTRICTED = ("model-repository", "logging", "trace", "shared-memory")
"""Triton APIs that change the server or map its memory. They are closed: see :data:`CLOSED`."""
CLOSED = f"{CLOSED_HEADER}\n=\nx"
"""Name and value of the header that opens the :data:`RESTRICTED` APIs. A header cannot hold a line break, so nobody can send it."""
DRAIN_SECONDS = 30
"""How long requests in flight may take to finish after the server is asked to stop, in seconds."""
STANDSTILL_SECONDS = 5
"""Draining ends after this many seconds without progress: the remaining requests were abandoned by their clients."""
EXIT_SECONDS = 5
"""How long Triton may then take to unload its models, in seconds. Without a limit it waits for idle client connections."""
ALLOCATION_POOL_SIZE = 64
"""Number of gRPC message buffers that Triton keeps allocated; its default is 8."""
STUB = "triton_python_backend_stub"
UNHEALTHY = ("is not healthy", "belongs to another request")
"""Parts of the log lines after which answers can belong to other requests: Triton has given up a stub that may still answer."""
SIGNALLED = "Signal (15) received"
"""What it logs after SIGTERM. It then takes five seconds to end, and answers nothing meanwhile."""


class TritonServer:
    """A tritonserver process with its temporary files, as a context manager that starts and stops it.

    Attributes:
        options: The options that the server runs with.
        probes: One probe for each ensemble in the repository.
        address: Where it listens.
        on_trial: Models that are loaded to see whether they work: that one of them is unhealthy harms no other.
        failed_by_chance: Whether it was not ready because a signal ended it or a process of it did not answer in time: the next
            start may succeed.
    """

    def __init__(
        self,
        options: ServeOptions,
        *,
        log: Callable[[str], None],
        address: TritonAddress | None = None,
        is_checked: bool = False,
    ) -> None:
        """Find the ensembles and tritonserver.

        Args:
            options: The options to run the server with.
            log: Called with every line that the server prints.
            address: Where to listen. None: where the options say, without a front.
            is_checked: Whether the repository is a view whose packages were compared with their manifests.

        Raises:
            ArtifactError: The repository holds no packaged ensemble, or one that was altered.
            SetupError: There is no tritonserver on this machine.
        """
        self.options = options
        if not is_checked:
            check_repository(options.repository)
        self.probes = find_probes(options.repository)
        self.address = address or tcp_address(options)
        self._install = find_install()
        self._log = log
        self._tail: deque[str] = deque(maxlen=40)
        self._shm_prefix = f"{temporary_prefix()}{secrets.token_hex(4)}_"
        self._cleanup = contextlib.ExitStack()
        self._reader = threading.Thread(target=self._forward, daemon=True)
        self._stubs: list[psutil.Process] = []
        self._failure: str | None = None
        self._stopping = False
        self._leaving: set[str] = set()
        self.on_trial: set[str] = set()
        self.failed_by_chance = False

    def __enter__(self) -> Self:
        """Start the server, without waiting until it is ready.

        Raises:
            ServerError: A port is occupied.
            SetupError: The embedded server cannot run here.
        """
        if not self.address.http.startswith(SOCKET_SCHEME):
            check_ports(self.options)
        self._remove_sockets()
        remove_abandoned_files()
        with contextlib.ExitStack() as cleanup:  # undoes every step so far if a later one fails
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix=temporary_prefix())))
            cleanup.enter_context(remains_removed(self._shm_prefix))
            backends = prepare_backends(self._install, folder)
            self._weights = folder / "weights"
            environment = server_environment(self._install, backends)
            command = server_command(self._install, self.options, self.address, backends, self._shm_prefix)
            self._process = self._start(command, environment)
            cleanup.callback(self._terminate)
            self._reader.start()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and remove its temporary files."""
        self._cleanup.close()

    def _start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        try:
            return start_process(command, prepare=_prepare_process, environment=environment)
        except subprocess.SubprocessError as error:
            raise ServerError(
                "cannot keep the server's shared memory private: this system refuses system call filters (seccomp)",
                hint="run it where seccomp is allowed",
            ) from error

    def _remove_sockets(self) -> None:
        """Remove the sockets that a server which was killed has left."""
        for url in (self.address.http, self.address.grpc, self.address.metrics):
            if url.startswith(SOCKET_SCHEME):
                Path(url.removeprefix(SOCKET_SCHEME)).unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """The process id of tritonserver."""
        return self._process.pid

    def wait_until_ready(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Wait until every ensemble has given the answers that packaging recorded.

        Args:
            interrupted: Ends the wait early when it returns True.

        Raises:
            ServerError: The server ended, refused a probe, gave another answer, or took longer than ``ready_timeout``.
        """
        deadline = time.monotonic() + self.options.ready_timeout
        waiting = find_probes(self.options.repository, all_texts=True)
        while waiting and not interrupted():
            if self._process.poll() is not None:
                self._reader.join(5)  # the last lines say why
                self.failed_by_chance = self._process.returncode < 0 or is_passing(list(self._tail))
                ended = describe_exit(self._process.returncode) if self._failure is None else "was stopped"
                raise ServerError(
                    f"tritonserver {ended} before it was ready: {failure_reason(list(self._tail))}",
                    hint="see its log, or check this machine with: tritonize doctor",
                )
            if time.monotonic() > deadline:
                raise ServerError(
                    f"tritonserver was not ready after {self.options.ready_timeout:.0f} s", hint="raise --ready-timeout"
                )
            try:
                check_answers(waiting[0], ask(self.address.http, waiting[0], timeout=PROBE_SECONDS))
                waiting.pop(0)
            except RequestError as error:
                if error.status != "UNAVAILABLE" and is_ready(self.address.http):
                    self.failed_by_chance = is_passing([error.message])
                    raise ServerError(f"an ensemble failed its first request: {error.message}") from error
                time.sleep(0.05)
            except OSError:
                time.sleep(0.05)
        self.watch_stubs()

    def watch_stubs(self) -> None:
        """Watch the processes that the models have now."""
        with contextlib.suppress(psutil.NoSuchProcess):  # tritonserver has ended: that is found first
            self._stubs = [stub for stub in self._find_stubs() if not self._leaves(stub)]

    def remove_weights(self) -> None:
        """Remove the files that loaded models have mapped. They stay in memory while a model uses them."""
        shutil.rmtree(self._weights, ignore_errors=True)

    def stop_watching(self, name: str, generation: str) -> None:
        """Watch the processes of a generation of a package no more, because they end on purpose."""
        self._leaving |= path_parts(name, generation)
        self._stubs = [stub for stub in self._stubs if not self._leaves(stub)]

    def expect(self, name: str, generation: str) -> None:
        """Watch the processes of a generation again, from the next :meth:`watch_stubs` on."""
        self._leaving -= path_parts(name, generation)

    def _leaves(self, stub: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(stub.cmdline())
            return any(part in command for part in self._leaving)
        return True

    def _find_stubs(self) -> list[psutil.Process]:
        stubs = []
        for child in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended since it was listed
                if child.name().startswith(STUB[:15]):
                    stubs.append(child)
        return stubs

    def failure(self) -> str | None:
        """Return why the server must be restarted, as the rest of a sentence about it, or None.

        It must be restarted if it ended, if one of its stub processes died, or if Triton gave up a stub process that may still
        answer. Triton neither reports nor restarts a dead stub.
        """
        if self._failure is None:
            self._failure = self._find_failure()
        return self._failure

    def _find_failure(self) -> str | None:
        code = self._process.poll()
        if code is not None:
            self._reader.join(5)  # the last lines say why
            return f"{describe_exit(code)}: {failure_reason(list(self._tail))}"
        for stub in self._stubs:
            with contextlib.suppress(psutil.NoSuchProcess):
                if stub.is_running() and stub.status() != psutil.STATUS_ZOMBIE:
                    continue
            return f"lost a Python backend process ({stub.pid}), which {describe_zombie(stub.pid)}"
        return None

    def fail(self, reason: str) -> None:
        """Kill the server at once, with all its processes, because it cannot be trusted any more."""
        if self._failure is None:
            self._failure = reason
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def _started(self) -> bool:
        return self._reader.ident is not None

    def traffic(self, *, timeout: float = 5) -> Traffic:
        """Read how many requests have ended and how many are in flight.

        Args:
            timeout: Time limit of each of the two requests that it takes, in seconds.

        Raises:
            OSError: The server did not answer.
        """
        return read_traffic(self.address.http, self.address.metrics, self.probes, timeout=timeout)

    def processor_seconds(self) -> float:
        """Return the processor time that the server's processes have used so far, in seconds."""
        used = 0.0
        for process in (psutil.Process(self.pid), *self._stubs):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used += times.user + times.system
        return used

    def drain(self) -> None:
        """Wait until no request is between the steps of an ensemble, for at most :data:`DRAIN_SECONDS`.

        Triton does not wait itself: when it is stopped, each model finishes its current requests, and the next step of the same
        requests is refused. Triton never counts requests that a client abandoned as finished, so a standstill also ends the wait.
        """
        deadline = time.monotonic() + DRAIN_SECONDS
        before, changed = None, time.monotonic()
        while time.monotonic() < deadline:
            try:
                traffic = self.traffic()
            except OSError:
                return  # the server has stopped answering
            if traffic != before:
                before, changed = traffic, time.monotonic()
            elif traffic.in_flight == 0 or time.monotonic() - changed > STANDSTILL_SECONDS:
                return
            time.sleep(POLL_SECONDS)

    def _forward(self) -> None:
        assert self._process.stdout is not None
        gpu = has_gpu()
        with self._process.stdout as output:
            for raw in output:
                line = raw.rstrip()
                if any(part in line for part in UNHEALTHY) and not any(model in line for model in list(self.on_trial)):
                    self.fail(f"may give answers that belong to other requests: {read_line(line).text}")
                if SIGNALLED in line and not self._stopping:
                    self.fail("was asked by somebody else to stop")
                if is_noise(line, gpu=gpu):
                    continue
                self._tail.append(line)
                self._log(line)

    def _terminate(self) -> None:
        self._stopping = True
        if self._process.poll() is None and self._failure is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(EXIT_SECONDS + 10)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # a server that crashed leaves its stubs running
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._started:
            self._reader.join(5)


def _prepare_process() -> None:
    die_with_parent()
    keep_shared_memory_private()


def server_command(
    install: Install, options: ServeOptions, address: TritonAddress, backends: Path | None, shm_prefix: str
) -> list[str]:
    """Return the command line of tritonserver.

    Only the current generation of each package is loaded. The APIs in :data:`RESTRICTED` are closed, but for loading models on
    a private socket. The start fails if one model cannot be loaded.

    Args:
        install: The tritonserver to run.
        options: The options of ``tritonize serve``.
        address: Where it listens.
        backends: The backend directory. None means the server's own.
        shm_prefix: Prefix of the names of the shared memory regions.
    """
    # on a private socket, the supervisor itself loads models
    closed = [api for api in RESTRICTED if not (address.is_private and api == "model-repository")]
    command = [
        str(install.binary),
        f"--model-repository={options.repository.absolute()}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in startup_models(options.repository)),
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        *address.flags,
        f"--http-restricted-api={','.join(RESTRICTED)}:{CLOSED}",
        f"--grpc-restricted-protocol={','.join(closed)}:{CLOSED}",
        f"--grpc-infer-allocation-pool-size={ALLOCATION_POOL_SIZE}",
        "--log-info=false",
        *trace_flags(options),
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
    ]
    if backends is not None:
        command += [f"--backend-directory={backends}", f"--backend-config=onnxruntime,shm-region-prefix-name={shm_prefix}"]
    return command


def check_ports(options: ServerAddress) -> None:
    """Check that all ports are free. Triton would report an occupied one only after it has loaded the models.

    Raises:
        ServerError: A port is occupied or given twice, or the address does not belong to this machine.
    """
    ports = {"--http-port": options.http_port, "--grpc-port": options.grpc_port, "--metrics-port": options.metrics_port}
    if len(set(ports.values())) < len(ports):
        raise ServerError("HTTP, gRPC and metrics need a port each", hint=f"give different ports with {', '.join(ports)}")
    for flag, port in ports.items():
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((options.host, port))
            except OSError as error:
                raise ServerError(
                    f"cannot listen on {options.host}:{port}: {error.strerror}",
                    hint=f"choose another port with {flag}, or stop the server there with: tritonize stop --http-port …",
                ) from error
