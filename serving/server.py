"""One running tritonserver: started safely, known to answer, drained and cleaned up after."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
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

import psutil

from serving.errors import RequestError, ServerError
from serving.install import Install, find_install, prepare_backends, server_environment
from serving.machine import has_gpu
from serving.options import ServeOptions, ServerAddress
from serving.probe import ask, find_probes, read_traffic

POLL_SECONDS = 0.1
PROBE_SECONDS = 15
"""How long one probe may take before it is sent again; a request to stop is not heard while it lasts."""
RESTRICTED = ("model-repository", "logging", "trace", "shared-memory")
"""Triton APIs that change the server or map its memory; nobody holds the key to them unless they read it off the command line."""
DRAIN_SECONDS = 30
"""How long requests in flight may take to finish once the server is asked to stop."""
STANDSTILL_SECONDS = 5
"""How long nothing may have moved before what looks like a request in flight is taken for one that was given up."""
EXIT_SECONDS = 5
"""How long Triton may then take to unload; it would wait longer only for clients that keep idle connections open."""
TRACE = "tritonize_"
"""Begins the name of everything temporary. The keeper's process id and process namespace follow, so that what a killed one left
is recognised, and what one in another container of this machine uses is let be."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton's Python backend puts its regions
REQUESTS_KEPT = 64
"""So many gRPC requests in flight find their message buffers allocated; Triton keeps 8 unless told otherwise."""
STUB = "triton_python_backend_stub"
NO_GPU_NOISE = (
    "CudaDriverHelper",
    "CUDA driver version is insufficient",
    "pinned memory pool",
    "Failed to initialize NVML",
    "DCGM unable to start",
    "pinned system memory",
)
"""What the server reports as errors on every machine without a GPU."""
LINK_NOISE = "which fails to convert to integral number"
"""What it says of ``current`` and ``generations`` (see ``serving.repository``)."""
PREFIX = re.compile(r"^E\d+ [\d:.]+ \d+ \S+\] ")
"""Time, thread and source line in front of an error in its log."""


class TritonServer:
    """A tritonserver process and what it leaves behind. Use as a context manager: leaving it stops the server.

    Args:
        log: called with every line the server prints.
    """

    def __init__(self, options: ServeOptions, *, log: Callable[[str], None]) -> None:
        self.options = options
        self.probes = find_probes(options.repository)
        self._install = find_install()
        self._log = log
        self._tail: deque[str] = deque(maxlen=40)
        self._shm_prefix = f"{temporary_prefix()}{secrets.token_hex(4)}_"
        self._cleanup = contextlib.ExitStack()
        self._stubs: list[psutil.Process] = []

    def __enter__(self) -> TritonServer:
        check_ports(self.options)
        _sweep()
        with contextlib.ExitStack() as cleanup:  # where starting fails, at whatever line, what was done so far is undone
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix=temporary_prefix())))
            cleanup.callback(self._remove_shared_memory)
            command = server_command(self._install, self.options, prepare_backends(self._install, folder), self._shm_prefix)
            self._process = subprocess.Popen(
                command,
                env=server_environment(self._install),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                process_group=0,
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
            cleanup.callback(self._terminate)
            reader = threading.Thread(target=self._forward, daemon=True)
            reader.start()
            cleanup.callback(reader.join, 5)
            cleanup.callback(self._terminate)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._process.pid

    def wait_until_ready(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Return when every ensemble has answered a real request, or as soon as ``interrupted()`` says so.

        Raises:
            ServerError: the server ended, refused a probe, or took longer than ``ready_timeout``.
        """
        deadline = time.monotonic() + self.options.ready_timeout
        waiting = list(self.probes)
        while waiting and not interrupted():
            if self._process.poll() is not None:
                code = self._process.returncode
                raise ServerError(
                    f"tritonserver ended with code {code} before it was ready: {self._last_error()}",
                    hint="its log says more; tritonize doctor checks the set-up",
                )
            if time.monotonic() > deadline:
                raise ServerError(
                    f"tritonserver was not ready after {self.options.ready_timeout:.0f} s", hint="raise --ready-timeout"
                )
            try:
                ask(self.options.base_url, waiting[0], timeout=PROBE_SECONDS)
                waiting.pop(0)
            except RequestError as error:
                if error.status != "UNAVAILABLE" and _is_ready(self.options.base_url):
                    raise ServerError(f"an ensemble does not answer: {error.message}") from error
                time.sleep(0.05)
            except OSError:
                time.sleep(0.05)
        self._stubs = [child for child in psutil.Process(self.pid).children(recursive=True) if child.name().startswith(STUB[:15])]

    def failure(self) -> str | None:
        """Why the server must be restarted, or None: it ended, or one of its stubs is dead (which Triton neither
        reports nor mends)."""
        code = self._process.poll()
        if code is not None:
            return f"tritonserver ended with code {code}: {self._last_error()}"
        for stub in self._stubs:
            with contextlib.suppress(psutil.NoSuchProcess):
                if stub.is_running() and stub.status() != psutil.STATUS_ZOMBIE:
                    continue
            return f"a Python backend process ({stub.pid}) died"
        return None

    def drain(self) -> None:
        """Wait until no request is between the steps of an ensemble, at most :data:`DRAIN_SECONDS`.

        Triton itself does not: told to stop, it lets each model finish what it holds, and refuses the next step of the same
        request. Requests that clients gave up on are never counted as finished, so a standstill ends the wait too.
        """
        deadline = time.monotonic() + DRAIN_SECONDS
        before, changed = None, time.monotonic()
        while time.monotonic() < deadline:
            try:
                traffic = read_traffic(self.options.base_url, self.options.metrics_url, self.probes)
            except OSError:
                return  # it does not answer any more: nothing is left to wait for
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
                if LINK_NOISE in line or (not gpu and any(noise in line for noise in NO_GPU_NOISE)):
                    continue
                self._tail.append(line)
                self._log(line)

    def _last_error(self) -> str:
        said = [PREFIX.sub("", line).split("\\n")[0].strip('"') for line in self._tail if line.startswith(("E", "error:"))]
        causes = [line for line in said if "failed to load '" in line]  # first the cause, then what follows from it
        return causes[0] if causes else said[-1] if said else "it said nothing about why"

    def _terminate(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(EXIT_SECONDS + 10)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # stubs whose server crashed go with it
            os.killpg(self._process.pid, signal.SIGKILL)

    def _remove_shared_memory(self) -> None:
        for region in SHARED_MEMORY.glob(f"{self._shm_prefix}*"):  # a stub that crashed leaves its own
            region.unlink(missing_ok=True)


def server_command(install: Install, options: ServeOptions, backends: Path | None, shm_prefix: str) -> list[str]:
    """The command line: this host only unless told otherwise, no model control, changing APIs locked, no partial start."""
    key = f"tritonize-admin={secrets.token_urlsafe(24)}"
    command = [
        str(install.binary),
        f"--model-repository={options.repository.absolute()}",
        "--model-control-mode=none",
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--http-address={options.host}",
        f"--http-port={options.http_port}",
        f"--grpc-address={options.host}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-address={options.host}",
        f"--metrics-port={options.metrics_port}",
        f"--http-restricted-api={','.join(RESTRICTED)}:{key}",
        f"--grpc-restricted-protocol={','.join(RESTRICTED)}:{key}",
        f"--grpc-infer-allocation-pool-size={REQUESTS_KEPT}",
        "--log-info=false",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
    ]
    if backends is not None:
        command += [f"--backend-directory={backends}", f"--backend-config=onnxruntime,shm-region-prefix-name={shm_prefix}"]
    return command


def check_ports(options: ServerAddress) -> None:
    """Find an occupied port before Triton does, half a minute later and in other words.

    Raises:
        ServerError: a port is taken, or the address is not this machine's.
    """
    for flag, port in (
        ("--http-port", options.http_port),
        ("--grpc-port", options.grpc_port),
        ("--metrics-port", options.metrics_port),
    ):
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((options.host, port))
            except OSError as error:
                raise ServerError(
                    f"cannot listen on {options.host}:{port}: {error.strerror}",
                    hint=f"choose another with {flag}, or end what listens there (a server of yours: tritonize stop --http-port …)",
                ) from error


def temporary_prefix() -> str:
    """Begins the names of everything temporary that this process is the keeper of: see :data:`TRACE`."""
    return f"{TRACE}{os.getpid()}_{_namespace()}_"


def _sweep() -> None:
    """Remove what keepers that were killed outright could not remove themselves."""
    for place in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        for left in place.glob(f"{TRACE}*_{_namespace()}_*"):
            owner = left.name.removeprefix(TRACE).split("_")[0]
            with contextlib.suppress(FileNotFoundError):  # another server that starts just now sweeps too
                if owner.isdigit() and not psutil.pid_exists(int(owner)) and left.stat().st_uid == os.getuid():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


def _namespace() -> int:
    """Tells the process ids of one container from those of another."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _is_ready(base_url: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(f"{base_url}/v2/health/ready", timeout=5) as response:  # noqa: S310
            return bool(response.status == 200)
    except OSError:
        return False


def _die_with_parent() -> None:
    """Ask Linux to stop tritonserver when whoever started it is killed outright: no server is left without a keeper."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
