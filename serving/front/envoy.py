"""One Envoy process in front of Triton: start it, open and close its gate, wait until it is idle."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self

from serving.artifact import read_manifest
from serving.errors import ServerError, SetupError
from serving.front.bootstrap import GATE, envoy_bootstrap
from serving.front.draining import Activity, drain
from serving.front.failed_requests import FailedRequests
from serving.front.front_plan import FrontPlan
from serving.front.interface import Front
from serving.front.routes import HOLD
from serving.front.secrets import API_KEYS, CERTIFICATE, CLIENT_CA, FrontSecrets
from serving.front.streaming import has_streaming_models
from serving.health_options import LONGEST_DRAIN_SECONDS
from serving.install import site_packages, triton_environment
from serving.isolation import describe_exit, die_with_parent, start_process, temporary_prefix
from serving.layout import current_folder
from serving.manifests import RepositoryManifest
from serving.options import ServeOptions
from serving.probe import find_probes
from serving.reporting import logger
from serving.server import UNHEALTHY
from serving.triton_address import SOCKET_SCHEME, fetch, numeric_host, socket_address

START_SECONDS = 20
"""How long Envoy may take to listen, in seconds."""
POLL_SECONDS = 0.05
FLUSH_MILLISECONDS = 1000
"""How long Envoy may keep lines of its logs about requests, in milliseconds."""
CHECK_SECONDS = 3
"""How often Envoy is asked whether it answers, in seconds."""
ANSWER_SECONDS = 5
"""How long it may take to answer, in seconds."""
UNANSWERED_CHECKS = 2
"""After so many checks without an answer, Envoy is killed and started again."""
MIN_IN_FLIGHT = 16
"""Requests in flight that keep all steps of an ensemble busy, however few instances its model has."""
STREAMS_IN_FLIGHT = 64
"""Requests in flight at least where a model streams: it runs many together, and ends those whose clients leave."""


class EnvoyFront(Front):
    """An Envoy process with its folder, as a context manager. The folder also holds the sockets that Triton listens on.

    ``most_in_flight`` counts both protocols together.
    """

    def __init__(self, options: ServeOptions, *, log: Callable[[str], None]) -> None:
        """Find Envoy and check the options.

        Args:
            options: The options of ``tritonize serve``.
            log: Called with every line that Envoy prints.

        Raises:
            ArtifactError: The repository holds no packaged ensemble.
            ServerError: The options contradict each other, or a file that they name cannot be used.
            SetupError: There is no Envoy on this machine, or a file that the options name cannot be used.
        """
        self._options = options
        self._in_flight = options.in_flight or needed_in_flight(options.repository)
        self.most_in_flight = 2 * self._in_flight
        self._binary = find_envoy()
        self._log = log
        self._tail: deque[str] = deque(maxlen=20)
        self._failed_requests = FailedRequests(logger.warning)
        self._cleanup = contextlib.ExitStack()
        self._open = self._held = False
        # SimpleQueue.get waits for ever where a signal comes as its time limit ends
        self._alarms: queue.Queue[str] = queue.Queue()
        self._unanswered = 0
        self._next_check = 0.0

    def __enter__(self) -> Self:
        """Start Envoy and wait until it listens.

        Raises:
            ServerError: It could not be started.
        """
        with contextlib.ExitStack() as cleanup:
            self._folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix=temporary_prefix())))
            self.triton = socket_address(self._folder)
            self._secrets = FrontSecrets(self._options, self._folder)
            self._write_configuration()
            self._start()
            cleanup.callback(self.shut_down)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop Envoy and remove its folder."""
        self._cleanup.close()

    def open(self) -> None:
        """Let requests pass."""
        with contextlib.suppress(queue.Empty):  # those about the server before
            while True:
                self._alarms.get_nowait()
        self._stop_file.unlink(missing_ok=True)
        self.hold(on=False)
        self._set_gate(0)
        self._open = True

    def close(self) -> None:
        """Refuse new requests. Those that have passed go on."""
        self._open = False
        with contextlib.suppress(OSError):  # an Envoy that has ended refuses everything
            self._set_gate(100)

    def hold(self, *, on: bool) -> None:
        """Refuse inference, or let it pass again. Reads and health checks pass."""
        if on != self._held:
            with contextlib.suppress(OSError):  # an Envoy that has ended refuses everything; it starts again without a hold
                self._set_runtime(HOLD, 100 if on else 0)
                self._held = on

    def release(self) -> None:
        """Ask clients to connect anew for further requests, which pass as before: with the next answer on each connection."""
        with contextlib.suppress(OSError):  # an Envoy that has ended has no connections; the next one keeps those that it gets
            self._command("/drain_listeners?graceful&skip_exit")

    def wait_idle(self, seconds: float) -> None:
        """Wait until no request that has passed is left, for at most that many seconds; then end the streams with an error."""
        time.sleep(POLL_SECONDS)  # the thread that takes requests learns a little later that the gate is closed
        with contextlib.suppress(OSError):
            drain(self._activity, self._stop_file, seconds)

    def revive(self) -> None:
        """Start Envoy again if it has ended or hangs.

        Raises:
            ServerError: It could not be started.
        """
        self._failed_requests.flush()
        self._secrets.follow()
        code = self._process.poll()
        if code is None and self._hangs():
            self._process.kill()
            code = self._process.wait()
        if code is None:
            return
        logger.warning(f"the proxy in front of Triton {describe_exit(code)}; starting it again")
        self._reader.join(1)
        self._start()
        if self._open:
            self.open()

    def _hangs(self) -> bool:
        """Return whether Envoy has not answered a request for some time. Asks now and then; a refusal is an answer."""
        if time.monotonic() < self._next_check:
            return False
        try:
            fetch(self._options.metrics_url.removesuffix("/metrics"), "/", timeout=ANSWER_SECONDS)
        except TimeoutError:
            self._unanswered += 1
        except OSError:
            self._unanswered = 0  # it closes connections above its limit
        else:
            self._unanswered = 0
        self._next_check = time.monotonic() + CHECK_SECONDS
        return self._unanswered >= UNANSWERED_CHECKS

    def wait_for_alarm(self, seconds: float) -> str | None:
        """Wait until the guard sees an answer to another request, or a stub process that Triton gave up.

        Args:
            seconds: The longest time to wait.

        Returns:
            What it has seen, as the rest of a sentence about Triton, or None. Each alarm is returned once.
        """
        try:
            return f"cannot be trusted any more: {self._alarms.get(timeout=seconds)}"
        except queue.Empty:
            return None

    def _write_configuration(self) -> None:
        options = self._options
        host = numeric_host(options.host)
        plan = FrontPlan(
            repository=options.repository.absolute(),
            http=(host, options.http_port),
            grpc=(host, options.grpc_port),
            metrics=(host, options.metrics_port),
            triton_http=_socket(self.triton.http),
            triton_grpc=_socket(self.triton.grpc),
            triton_metrics=_socket(self.triton.metrics),
            admin=self._folder / "admin",
            in_flight=self._in_flight,
            queue=options.queue,
            max_request_bytes=int(options.max_request_mib * 2**20),
            streams=has_streaming_models(options.repository),
            stop_file=self._stop_file,
            certificate=self._secrets.path(CERTIFICATE),
            client_ca=self._secrets.path(CLIENT_CA),
            keys_file=self._secrets.path(API_KEYS),
            grpc_connection_seconds=options.grpc_max_connection_age,
            access_log=options.access_log and options.access_log.absolute(),
        )
        path = self._folder / "envoy.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(envoy_bootstrap(plan)), encoding="utf-8")

    def _start(self) -> None:
        self._held = False
        self._unanswered, self._next_check = 0, time.monotonic() + CHECK_SECONDS
        command = [str(self._binary), "--config-path", str(self._folder / "envoy.json"), "--disable-hot-restart"]
        command += ["--concurrency", "1", "--log-level", "warning", "--log-format", "%l %v"]
        command += ["--file-flush-interval-msec", str(FLUSH_MILLISECONDS)]
        command += ["--drain-strategy", "immediate", "--drain-time-s", str(2 * LONGEST_DRAIN_SECONDS)]  # it ends before
        self._process = start_process(command, prepare=die_with_parent)
        self._reader = threading.Thread(target=self._forward, daemon=True)
        self._reader.start()
        try:
            self._wait_until_listening()
        except ServerError:
            self.shut_down()
            raise

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None:
                self._reader.join(5)
                raise ServerError(f"the proxy in front of Triton did not start: {self._tail[-1] if self._tail else 'no message'}")
            if time.monotonic() > deadline:
                raise ServerError(f"the proxy in front of Triton did not start within {START_SECONDS} s")
            time.sleep(POLL_SECONDS)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return fetch(self._admin, "/ready", timeout=5)[0] == 200
        return False

    def _forward(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for raw in output:
                line = raw.rstrip()
                if self._failed_requests.read(line):
                    continue
                self._tail.append(line)
                self._log(line)
                if any(part in line for part in UNHEALTHY):
                    self._alarms.put(line)

    def _set_gate(self, percent: int) -> None:
        self._set_runtime(GATE, percent)

    def _set_runtime(self, key: str, percent: int) -> None:
        self._command(f"/runtime_modify?{key}={percent}")

    def _command(self, path: str) -> None:
        status, body = fetch(self._admin, path, timeout=5, method="POST")
        if status != 200:
            raise ServerError(f"the proxy in front of Triton does not obey: {body.decode(errors='replace')}")

    def _activity(self) -> Activity:
        streams = "cluster.triton_grpc_streams.upstream_"
        names = rf"http\.(http|grpc)\.downstream_rq_active|{streams}(rq_active|cx_rx_bytes_total)"
        _, body = fetch(self._admin, f"/stats?format=json&filter=^({names})$", timeout=5)
        values = {stat["name"]: stat["value"] for stat in json.loads(body)["stats"] if "value" in stat}
        grpc_streams = values.get(f"{streams}rq_active", 0)
        requests = sum(value for name, value in values.items() if name.startswith("http."))
        return Activity(requests - grpc_streams, grpc_streams, values.get(f"{streams}cx_rx_bytes_total", 0))

    @property
    def _stop_file(self) -> Path:
        return self._folder / "stopping"

    @property
    def _admin(self) -> str:
        return f"{SOCKET_SCHEME}{self._folder / 'admin'}"

    def shut_down(self) -> None:
        """End Envoy. Triton then need not wait for idle connections before it ends."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(5)
        self._failed_requests.flush(now=True)


def _socket(url: str) -> Path:
    return Path(url.removeprefix(SOCKET_SCHEME))


def find_envoy() -> Path:
    """Find Envoy on PATH, or else in the environment of the embedded server.

    Raises:
        SetupError: There is no Envoy.
    """
    on_path = shutil.which("envoy")
    if on_path:
        return Path(on_path)
    binary = site_packages(triton_environment()) / "envoy" / "_bin" / "envoy"
    if not os.access(binary, os.X_OK):
        raise SetupError(
            "no envoy on PATH or in the .triton environment", hint="install it with: make setup; or serve without it: --front none"
        )
    return binary


def needed_in_flight(repository: Path) -> int:
    """Return how many requests at the same time keep the packaged models busy.

    Two full batches for each instance that batches, and eight requests for each that does not: while one is computed, the next
    ones pass the other steps. More would only wait in Triton, where a request that its client has given up is still computed.

    Raises:
        ArtifactError: The repository holds no packaged ensemble.
    """
    names = [probe.ensemble for probe in find_probes(repository)]
    manifests = [read_manifest(current_folder(repository, name), RepositoryManifest) for name in names]
    each = [manifest.instances * (2 * manifest.max_batch_size if manifest.batching == "ragged" else 8) for manifest in manifests]
    return max(STREAMS_IN_FLIGHT if has_streaming_models(repository) else MIN_IN_FLIGHT, *each)
