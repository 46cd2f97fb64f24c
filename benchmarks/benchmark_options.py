"""Options of ``tritonize benchmark``: what to measure, and how much worse than a baseline it may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from export.columns import Columns
from serving.install import triton_environment

PROTOCOLS = ("grpc", "http")
REPORTS = Path("benchmarks/reports")


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How much worse than the baseline a report may be.

    Attributes:
        max_regression: Relative tolerance of speeds, 0.1 is 10 %.
        max_quality_drop: Tolerance of metrics and agreement, percentage points.
        any_machine: Evaluate speed, memory and loading of another machine too, and of a run that other processes slowed down.
    """

    max_regression: float = 0.1
    max_quality_drop: float = 0.5
    any_machine: bool = False


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server listens."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    def url(self, protocol: str) -> str:
        """``host:port`` of ``grpc`` or ``http``."""
        return f"{self.host}:{self.grpc_port if protocol == 'grpc' else self.http_port}"

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine, judging by its name."""
        return self.host in ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104 - compared, not bound


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Requests that arrive at random times, whether answers come or not. One of the two is None.

    Attributes:
        rate: Requests per second.
        share: Rate as a share of the best closed loop's throughput, 0.8 is 80 %.
    """

    rate: float | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What to measure.

    Attributes:
        name: Name of the model.
        artifacts: Folder for checkpoints and bundles.
        bundle: The exported bundle; None: ``ARTIFACTS/NAME/bundle``.
        checkpoint: The PyTorch original, a folder or a name on the Hub; None: ``ARTIFACTS/NAME/checkpoint``.
        repository: Model repository that the running server was started on.
        endpoint: The running server.
        in_process: Measure without a server.
        precisions: ONNX variants to run in process; empty for all of the bundle.
        device: ``auto``, ``cpu`` or ``gpu``, in process.
        protocols: Protocols of the load on the server; the first is used where one is enough.
        concurrencies: Clients of each closed loop.
        open_loops: Open loops.
        lengths: Tokens of rows that all have one length, measured beside rows as they are.
        batches: Rows per call in process.
        exported: Run the graph as Optimum exports it too.
        compiled: Run the original through ``torch.compile`` too.
        test: Other labelled rows than the bundle's own; None for those.
        columns: Columns of ``test``.
        rows: Texts that speed is measured on, drawn at random from the labelled rows.
        duration: Seconds of timing per figure, all rounds together.
        rounds: Number of turns of every model and load, each on rows of its own.
        gates: Expressions, see :mod:`benchmarks.gates`.
        baseline: ``report.json`` of an earlier run, or its folder.
        tolerances: How much worse than ``baseline`` a figure may be.
        junit: File for gates and comparison as JUnit XML.
        output: Folder for the report; None: a folder named after the model and the time.
        seed: Seed that draws and orders the rows.
        started: When the command was given.
    """

    name: str
    artifacts: Path = Path("artifacts")
    bundle: Path | None = None
    checkpoint: str | None = None
    repository: Path = Path("model_repository")
    endpoint: Endpoint = Endpoint()
    in_process: bool = False
    precisions: tuple[str, ...] = ()
    device: str = "auto"
    protocols: tuple[str, ...] = PROTOCOLS
    concurrencies: tuple[int, ...] = (1, 4, 16, 64)
    open_loops: tuple[OpenLoop, ...] = (OpenLoop(share=0.5), OpenLoop(share=0.8))
    lengths: tuple[int, ...] = (16, 64, 128, 384)
    batches: tuple[int, ...] = (1, 8, 32)
    exported: bool = True
    compiled: bool = False
    test: str | None = None
    columns: Columns = field(default_factory=Columns)
    rows: int = 512
    duration: float = 5.0
    rounds: int = 5
    gates: tuple[str, ...] = ()
    baseline: Path | None = None
    tolerances: Tolerances = Tolerances()
    junit: Path | None = None
    output: Path | None = None
    seed: int = 0
    started: datetime = field(default_factory=lambda: datetime.now().astimezone())

    @property
    def bundle_folder(self) -> Path:
        """Folder of the bundle."""
        return self.bundle or self.artifacts / self.name / "bundle"

    @property
    def original(self) -> str:
        """The PyTorch original, a folder or a name on the Hub."""
        return self.checkpoint or str(self.artifacts / self.name / "checkpoint")

    @property
    def report_folder(self) -> Path:
        """Folder for the report."""
        return self.output or REPORTS / f"{self.name}-{self.started:%Y%m%d-%H%M%S}"

    @property
    def server_environment(self) -> Path:
        """Folder of the environment that holds ``perf_analyzer``."""
        return triton_environment()
