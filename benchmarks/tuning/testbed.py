"""The testbed of tuning: packages each configuration, serves it with Triton and sends it real texts."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import MemoryMeter
from serving.bundle import Bundle
from serving.configuration import Configuration
from serving.errors import ExportError, RequestError, ServerError
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
class UnderLoadFigures:
    """What was measured while a configuration was served.

    Attributes:
        levels: Speed by number of clients.
        gpu_memory_mib: Memory in use on the GPUs, MiB; None without a GPU.
    """

    levels: Sequence[LoadRecord]
    gpu_memory_mib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Testbed(ABC):
    """Measures configurations of one bundle.

    Attributes:
        concurrencies: Numbers of clients, one load each, ascending.
        duration: Seconds of each load.
    """

    bundle: Bundle
    concurrencies: tuple[int, ...]
    duration: float

    @abstractmethod
    def _under_load(self, options: ServeOptions, memory: MemoryMeter) -> UnderLoadFigures:
        """Measure what is served."""

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
            choices = asdict(configuration) | {"max_length": self.bundle.max_length}
            package(PackageOptions(bundle=self.bundle.folder, repository=repository, name=NAME, tuned=False, **choices))
            options = _serve_options(repository)
            started, said = time.monotonic(), deque[str](maxlen=1)
            with TritonServer(options, log=said.append) as server:
                server.wait_until_ready()
                load_seconds = time.monotonic() - started
                with _ends_explained(server):
                    memory = MemoryMeter(psutil.Process(server.pid))
                    found = self._under_load(options, memory)
                    return {
                        "levels": tuple(found.levels),
                        "pss_mib": memory.pss_mib,
                        "peak_rss_mib": memory.peak_rss_mib,
                        "gpu_memory_mib": found.gpu_memory_mib,
                        "load_seconds": load_seconds,
                    }


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
