"""The testbed of tuning: packages each configuration, serves it with Triton and sends it real texts."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.energy import EnergyMeter
from benchmarks.load import find_perf_analyzer
from benchmarks.measurements import LoadMode
from benchmarks.processes import MemoryMeter
from benchmarks.served import ANSWERS_PER_CLIENT, Clients, ServerConnection, Target
from benchmarks.served_package import read_package
from benchmarks.tuning.tune_options import TuneOptions
from export.data import read_evaluation, sample_indices
from export.tasks import bundle_task
from serving.bundle import Bundle
from serving.configuration import Configuration
from serving.errors import ExportError, RequestError, ServerError
from serving.install import find_install, triton_environment
from serving.isolation import temporary_prefix
from serving.manifests import LoadRecord, TrialRecord
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from serving.server import TritonServer

NAME = "tuned"
WARM_UP_ROWS = 32
READY_SECONDS = 120.0
"""A configuration that takes longer to start has failed."""


@dataclass(frozen=True, kw_only=True)
class Testbed:
    """Measures configurations of one bundle.

    Attributes:
        rows: Evaluation rows, each a list of strings in the order of the task's inputs.
        concurrencies: Numbers of clients, one load each, ascending.
    """

    bundle: Bundle
    rows: list[list[str]]
    concurrencies: tuple[int, ...]
    duration: float
    load_generator: Path

    def expected_seconds(self) -> float:
        """Return the expected duration of a trial. Each load is warmed up for half of ``duration``."""
        return 10 + len(self.concurrencies) * (1.5 * self.duration + 1.5)

    def measure(self, configuration: Configuration, number: int) -> TrialRecord:
        """Make a trial. If the configuration cannot be served, the trial has a failure instead of figures.

        Raises:
            SetupError: No configuration can be served on this machine.
        """
        begun = time.monotonic()
        figures: dict[str, Any]
        try:
            figures = self._served(configuration)
        except (ServerError, RequestError, ExportError) as error:
            figures = {"failure": error.message}
        return TrialRecord(configuration=configuration, round=number, seconds=time.monotonic() - begun, **figures)

    def _served(self, configuration: Configuration) -> dict[str, Any]:
        """Return the figures of a trial."""
        # The prefix lets the next server remove this folder if this process is killed.
        with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
            repository = Path(folder) / "models"
            choices = asdict(configuration)
            package(PackageOptions(bundle=self.bundle.folder, repository=repository, name=NAME, tuned=False, **choices))
            options = _serve_options(repository)
            started, said = time.monotonic(), deque[str](maxlen=1)
            with TritonServer(options, log=said.append) as server:
                server.wait_until_ready()
                load_seconds = time.monotonic() - started
                with _ends_explained(server):
                    return self._under_load(options, server) | {"load_seconds": load_seconds}

    def _under_load(self, options: ServeOptions, server: TritonServer) -> dict[str, Any]:
        memory = MemoryMeter(psutil.Process(server.pid))
        with contextlib.closing(ServerConnection(options, NAME)) as connection:
            target = Target(server=connection, package=read_package(options.repository, NAME), load_generator=self.load_generator)
            asked = time.perf_counter()
            connection.ask(self.rows[:WARM_UP_ROWS], {})
            seconds_per_row = (time.perf_counter() - asked) / len(self.rows[:WARM_UP_ROWS])
            levels = tuple(self._level(target, memory, clients, seconds_per_row) for clients in self.concurrencies)
            gpu_memory = connection.gpu_memory_mib()
        memories = {"pss_mib": memory.pss_mib, "peak_rss_mib": memory.peak_rss_mib, "gpu_memory_mib": gpu_memory}
        return {"levels": levels, **memories}

    def _level(self, target: Target, memory: MemoryMeter, concurrency: int, seconds_per_row: float) -> LoadRecord:
        clients = Clients(
            target=target,
            inputs=self.bundle.task.inputs(),
            mode=LoadMode(protocol="grpc", concurrency=concurrency),
            least_seconds=ANSWERS_PER_CLIENT * concurrency * seconds_per_row,
            memory=memory,
            energy=EnergyMeter([]),
        )
        clients.measure(self.rows, self.duration)
        load = clients.load()
        return LoadRecord(
            concurrency=concurrency,
            throughput=load.speed.throughput,
            p50_ms=load.speed.p50_ms,
            p99_ms=load.speed.p99_ms,
            executed_batch=load.steps["model"].executed_batch,
        )


def make_testbed(bundle: Bundle, options: TuneOptions) -> Testbed:
    """Return a testbed on evaluation rows of the bundle.

    Raises:
        DataError: The bundle holds no evaluation rows.
        SetupError: There is no Triton or no load generator on this machine.
    """
    find_install()
    task = bundle_task(bundle)
    columns = list(zip(*task.requests(read_evaluation(bundle.folder, task).texts), strict=True))
    return Testbed(
        bundle=bundle,
        rows=[list(columns[index]) for index in sample_indices(len(columns), options.rows, options.seed)],
        concurrencies=options.loads,
        duration=options.duration,
        load_generator=find_perf_analyzer(triton_environment()),
    )


@contextlib.contextmanager
def _ends_explained(server: TritonServer) -> Iterator[None]:
    """Report the end of the server or of one of its processes as the cause of an error in the block."""
    import tritonclient.grpc as triton

    try:
        yield
    except (ServerError, RequestError, triton.InferenceServerException, psutil.NoSuchProcess) as error:
        raise ServerError(server.failure() or str(error)) from error
    if (failure := server.failure()) is not None:
        raise ServerError(failure)


def _serve_options(repository: Path) -> ServeOptions:
    """Return options with three free ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        http, grpc, metrics = (one.getsockname()[1] for one in sockets)
    return ServeOptions(repository=repository, http_port=http, grpc_port=grpc, metrics_port=metrics, ready_timeout=READY_SECONDS)
