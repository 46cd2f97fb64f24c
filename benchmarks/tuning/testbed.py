"""Where configurations are tried: each packaged into a repository of its own, served for real, and asked real texts."""

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
from benchmarks.machine import MemoryMeter
from benchmarks.served import ANSWERS_PER_CLIENT, Clients, Endpoint, ServerConnection, Target, read_package
from benchmarks.tuning.trial import LevelSpeed, Trial
from export.data import read_evaluation, sample
from serving.bundle import Bundle
from serving.configuration import Configuration
from serving.errors import ExportError, RequestError, ServerError
from serving.install import find_install, triton_environment
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from serving.server import TritonServer, temporary_prefix

NAME = "tuned"
WARM_UP_ROWS = 32
READY_SECONDS = 120.0
"""A way of serving that takes longer to start has failed: there are others to try."""


@dataclass(frozen=True, kw_only=True)
class Testbed:
    """What all trials of a bundle have in common.

    Args:
        rows: real rows, each a list of strings in the order of the task's inputs.
        concurrencies: clients of each load, rising.
        duration: seconds each load is measured.
        load_generator: ``perf_analyzer``.
    """

    bundle: Bundle
    rows: list[list[str]]
    concurrencies: tuple[int, ...]
    duration: float
    load_generator: Path

    def expected_seconds(self) -> float:
        """How long a trial takes, before any was made; half as much as is measured is warm-up."""
        return 10 + len(self.concurrencies) * (1.5 * self.duration + 1.5)

    def measure(self, configuration: Configuration, number: int) -> Trial:
        """Try a configuration. One that cannot be served is a trial that failed.

        Args:
            number: of the round.

        Raises:
            SetupError: nothing can be served here.
        """
        begun = time.monotonic()
        try:
            found = self._measure(configuration)
        except (ServerError, RequestError, ExportError) as error:
            found = {"failure": error.message}
        return Trial(configuration=configuration, round=number, seconds=time.monotonic() - begun, **found)

    def _measure(self, configuration: Configuration) -> dict[str, Any]:
        # named so that what a tuning that was killed outright left behind goes with what its server did
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
        endpoint = Endpoint(
            host=options.host, http_port=options.http_port, grpc_port=options.grpc_port, metrics_port=options.metrics_port
        )
        memory = MemoryMeter(psutil.Process(server.pid))
        with contextlib.closing(ServerConnection(endpoint, NAME)) as connection:
            target = Target(server=connection, package=read_package(options.repository, NAME), load_generator=self.load_generator)
            asked = time.perf_counter()
            connection.ask(self.rows[:WARM_UP_ROWS], {})
            seconds_per_row = (time.perf_counter() - asked) / len(self.rows[:WARM_UP_ROWS])
            levels = tuple(self._level(target, memory, clients, seconds_per_row) for clients in self.concurrencies)
            gpu_memory = connection.gpu_memory_mib()
        return {
            "levels": levels,
            "pss_mib": memory.pss_mib,
            "peak_rss_mib": memory.peak_rss_mib,
            "gpu_memory_mib": gpu_memory,
        }

    def _level(self, target: Target, memory: MemoryMeter, concurrency: int, seconds_per_row: float) -> LevelSpeed:
        clients = Clients(
            target=target,
            inputs=self.bundle.task.inputs(),
            protocol="grpc",
            concurrency=concurrency,
            least_seconds=ANSWERS_PER_CLIENT * concurrency * seconds_per_row,
            memory=memory,
            energy=EnergyMeter([]),
        )
        clients.measure(self.rows, self.duration)
        load = clients.load()
        return LevelSpeed(
            concurrency=concurrency,
            throughput=load.speed.throughput,
            p50_ms=load.speed.p50_ms,
            p99_ms=load.speed.p99_ms,
            executed_batch=load.executed_batch,
        )


def make_testbed(bundle: Bundle, *, rows: int, concurrencies: tuple[int, ...], duration: float, seed: int) -> Testbed:
    """A testbed on rows that the bundle was verified on.

    Args:
        rows: how many, drawn at random.

    Raises:
        DataError: the bundle holds no such rows.
        SetupError: there is no server here, or no load generator.
    """
    find_install()
    columns = list(zip(*bundle.task.requests(read_evaluation(bundle.folder, bundle.task).texts), strict=True))
    return Testbed(
        bundle=bundle,
        rows=[list(columns[index]) for index in sample(len(columns), rows, seed)],
        concurrencies=concurrencies,
        duration=duration,
        load_generator=find_perf_analyzer(triton_environment()),
    )


@contextlib.contextmanager
def _ends_explained(server: TritonServer) -> Iterator[None]:
    """Where what goes wrong in the block is that the server or a part of it ended, say that.

    Raises:
        ServerError: it did, also where nothing else went wrong.
    """
    import tritonclient.grpc as triton

    try:
        yield
    except (ServerError, RequestError, triton.InferenceServerException, psutil.NoSuchProcess) as error:
        raise ServerError(server.failure() or str(error)) from error
    if (failure := server.failure()) is not None:
        raise ServerError(failure)


def _serve_options(repository: Path) -> ServeOptions:
    """On three ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        http, grpc, metrics = (one.getsockname()[1] for one in sockets)
    return ServeOptions(repository=repository, http_port=http, grpc_port=grpc, metrics_port=metrics, ready_timeout=READY_SECONDS)
