"""What a benchmark found, as data: what is not measured is not here, and whatever can be derived is derived from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.speed import Speed
from benchmarks.verdicts import BenchmarkGate, FigureComparison, ReportComparison

SCHEMA_VERSION = 3

ARRANGEMENT_COSTS = ("load_seconds", "first_answer_seconds", "peak_rss_mib", "gpu_memory_mib", "joules_per_row")
SERVED_COSTS = ("load_seconds", "peak_rss_mib", "pss_mib", "gpu_memory_mib", "size_mib")
LOAD_COSTS = ("executed_batch", "joules_per_row")
QUALITIES = ("agreement", "max_score_difference", "max_logit_difference", "calibration_error", "not_finite")
"""Figures by the names of their fields; of quality beside the metrics and ``metric_drop``."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure of quality and its 95 % interval, bootstrapped over the rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ChangedAnswer:
    """A row whose answer is not the original's.

    Args:
        row: its number among the labelled rows, from 0.
        texts: by input tensor.
        reference: what the row's answer is held against.
        original, answer: the prediction of the original, and of the variant.
        difference: largest between any two of their scores; None where answers hold no numbers.
    """

    row: int
    texts: dict[str, str]
    reference: Any
    original: Any
    answer: Any
    difference: float | None


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Answers to labelled rows.

    Args:
        rows: how many.
        metrics: the task's metric, every figure of it; empty where the library that answers tells too little for it.
        agreement: share of rows whose label is the original's.
        max_score_difference: largest difference of any score from the original's; None where answers hold no numbers.
        max_logit_difference: the same of what the model itself says; None where it was not seen (served, in a pipeline).
        main: the main metric with its interval.
        drop: how much lower the main metric is than the original's, on the same rows; None for the original itself.
        calibration_error: expected calibration error, 0 to 1: how far a label's score is from how often it is right; None where
            scores are no probabilities.
        not_finite: rows whose answers hold what is no number; figures that this leaves no number either are None, or left out.
        moved: the rows whose answers differ most, the worst first.
    """

    rows: int
    metrics: dict[str, float]
    agreement: float
    max_score_difference: float | None
    max_logit_difference: float | None = None
    main: Estimate | None = None
    drop: Estimate | None = None
    calibration_error: float | None = None
    not_finite: int = 0
    moved: list[ChangedAnswer] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """One way of running a model in process.

    Args:
        name: ``b32`` is 32 rows per call, ``p2t1`` two processes of one thread each, ``l128`` behind it rows of 128 tokens.
        processes, threads, batch: processes side by side, threads of one operator in each, rows per call.
        length: tokens of every row; None for rows as they are.
        load_seconds: from an empty process to a loaded model.
        first_answer_seconds: what the first answer took after that.
        peak_rss_mib: resident memory of all processes together, MiB.
        gpu_memory_mib: GPU memory, MiB; None without one.
        joules_per_row: what the whole machine drew while it answered; None where the machine does not tell.
    """

    name: str
    processes: int
    threads: int
    batch: int
    length: int | None = None
    speed: Speed
    load_seconds: float
    first_answer_seconds: float
    peak_rss_mib: float
    gpu_memory_mib: float | None
    joules_per_row: float | None = None


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """A model run in process.

    Args:
        kind: ``pytorch``, ``compiled`` (by torch.compile), ``pipeline`` (of transformers), ``exported`` (ONNX as Optimum wrote it),
            ``onnx`` (a variant of the bundle) or ``tensorrt``.
        precision: what really ran, told by the file or the tensors, never by the caller.
        sha256: of the file that ran.
        size_mib: of all files with its weights.
        fused_operators: how many operators of ONNX Runtime's own the file has, by type; None where it is no ONNX file.
        arrangements: by name.
    """

    kind: str
    precision: str
    device: str
    file: str
    sha256: str
    size_mib: float
    fused_operators: dict[str, int] | None
    arrangements: dict[str, Arrangement]
    quality: Quality

    @property
    def name(self) -> str:
        """As gates address it."""
        return f"{self.kind}.{self.precision}"

    @property
    def on_real_rows(self) -> dict[str, Arrangement]:
        """The arrangements that were timed on rows as they are."""
        return {name: one for name, one in self.arrangements.items() if one.length is None}

    @property
    def best(self) -> str:
        """The arrangement with the highest throughput over all rounds, on rows as they are."""
        return max(self.on_real_rows, key=lambda name: self.arrangements[name].speed.throughput)

    @property
    def quickest(self) -> str:
        """The arrangement with the lowest median latency over all rounds, on rows as they are."""
        return min(self.on_real_rows, key=lambda name: self.arrangements[name].speed.p50_ms)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What Triton counted for one step of the ensemble.

    Args:
        executed_batch: rows per execution.
        queue_us: time a request waited, mean, µs.
        compute_us: time a request spent in the step, the whole of its batch's, mean, µs.
        cost_us: time the step was busy, divided among the rows it answered, µs.
    """

    executed_batch: float
    queue_us: float
    compute_us: float
    cost_us: float


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the time of a request went, mean, µs. All of it together is the mean latency.

    Args:
        client: the load generator's packing and unpacking.
        network: between the client and Triton's ensemble, both ways, protocol included.
        queue: waiting for any of the steps.
        preprocess, model, postprocess: in the steps.
        ensemble: what else Triton's ensemble took: its scheduling, and the copies between steps.
    """

    client: float
    network: float
    queue: float
    preprocess: float
    model: float
    postprocess: float
    ensemble: float


def length_key(length: int | None) -> str:
    """Rows of ``length`` tokens, in a report's settings."""
    return "as they are" if length is None else str(length)


def rate_name(*, rate: float | None, share: float | None) -> str:
    """How gates address an open loop: ``load80``, or ``r100`` where the rate itself was given (``r0_5`` is 0.5)."""
    return f"load{100 * share:.0f}" if share is not None else f"r{rate:g}".replace(".", "_")


@dataclass(frozen=True, kw_only=True)
class Load:
    """Load on the server over ``grpc`` or ``http``, one row per request.

    Args:
        concurrency: clients of a closed loop, each of which waits for its answer before it asks again; None in an open loop.
        rate: requests per second of an open loop, sent at random moments (Poisson); None in a closed one.
        share: the rate as a share of what the server answers in the best closed loop; None where the rate was given as a number.
        length: tokens of every row; None for rows as they are.
        delayed: share of an open loop's requests that the load generator itself sent too late: latencies are then too low.
        executed_batch: of the model step: rows per execution by Triton's count. A model packaged with batching off may get
            several requests handed over together; it still runs them one by one.
        steps: by step, without the ensemble's name.
        joules_per_row: what the whole machine drew, the load generator included; None where the machine does not tell.
    """

    protocol: str
    concurrency: int | None
    rate: float | None = None
    share: float | None = None
    length: int | None = None
    delayed: float = 0.0
    speed: Speed
    executed_batch: float
    steps: dict[str, Step]
    split: Split
    joules_per_row: float | None = None

    @property
    def name(self) -> str:
        """As gates address it, after the model's name: ``c16`` is 16 clients over gRPC, ``http.c16`` over HTTP, ``r100`` 100
        requests per second, ``load80`` 80 % of what the server can do; ``l128`` behind it rows of 128 tokens."""
        how = rate_name(rate=self.rate, share=self.share) if self.concurrency is None else f"c{self.concurrency}"
        return f"{'' if self.protocol == 'grpc' else f'{self.protocol}.'}{how}{f'l{self.length}' if self.length else ''}"


@dataclass(frozen=True, kw_only=True)
class Served:
    """The ensemble, asked over the network.

    Args:
        precision: the repository's, and its ONNX file is still the one packaged.
        package: how it was packaged, from the repository's manifest.
        server: Triton's name and version.
        load_seconds: from starting the server to its first answers; None where it was not started by tritonize on this machine.
        peak_rss_mib, pss_mib: of the server's process tree under load (see ``MemoryMeter``); None where it cannot be seen.
        gpu_memory_mib: in use on the server's GPUs, by whomever; None without one.
        size_mib: of the ONNX file and the weights beside it.
    """

    precision: str
    package: dict[str, Any]
    sha256: str
    server: str
    loads: list[Load]
    quality: Quality
    load_seconds: float | None
    peak_rss_mib: float | None
    pss_mib: float | None
    gpu_memory_mib: float | None
    size_mib: float

    @property
    def name(self) -> str:
        """As gates address it."""
        return f"served.{self.precision}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything one run of ``tritonize benchmark`` found.

    Args:
        created: UTC, ISO 8601.
        settings: what was measured on: rows, seconds, rounds, seed …
        main_metric: the figure of the task's metric that stands for its quality.
        rounds: for every round the figures that each round has of its own (throughput, percentiles, Triton's statistics), by the
            names of :meth:`figures`.
        baseline: every figure held against the baseline; None without one.
    """

    name: str
    task: str
    created: str
    main_metric: str
    environment: dict[str, Any]
    settings: dict[str, Any]
    in_process: list[InProcess]
    served: Served | None
    rounds: list[dict[str, float]]
    gates: list[BenchmarkGate]
    baseline: ReportComparison | None = None

    @property
    def regressions(self) -> list[FigureComparison]:
        """The figures that are worse than the baseline allows, the worst first."""
        return self.baseline.of("worse") if self.baseline is not None else []

    def figures(self) -> dict[str, float]:
        """Every figure by the dotted name that gates and baselines use.

        ``pytorch.fp32.throughput`` without an arrangement is the best arrangement's, ``…p50_ms`` (and the other percentiles) the
        quickest one's: the same arrangement in every round, the best or quickest over all of them. ``served.int8.c16.…`` is gRPC,
        ``served.int8.http.c16.…`` HTTP.
        """
        tree: dict[str, Any] = {}
        for model in self.in_process:
            tree[model.name] = _model_figures(model)
        if self.served is not None:
            tree[self.served.name] = _served_figures(self.served)
        return dict(flatten("", tree))

    def figures_by_round(self) -> list[dict[str, float]]:
        """Every figure as each round found it, those without rounds (quality, memory, loading) the same in all."""
        figures = self.figures()
        return [figures | found for found in self.rounds]

    def speeds(self) -> Iterator[tuple[str, Speed]]:
        """Every speed, by the name its figures begin with."""
        for model in self.in_process:
            for name, arrangement in model.arrangements.items():
                yield f"{model.name}.{name}", arrangement.speed
        if self.served is not None:
            for load in self.served.loads:
                yield f"{self.served.name}.{load.name}", load.speed


def _model_figures(model: InProcess) -> dict[str, Any]:
    by_name = {name: asdict(arrangement.speed) | _costs(arrangement) for name, arrangement in model.arrangements.items()}
    best, quickest = model.arrangements[model.best], model.arrangements[model.quickest]
    throughputs = {key: value for key, value in asdict(best.speed).items() if key.startswith("throughput")}
    percentiles = {key: value for key, value in asdict(quickest.speed).items() if key.startswith("p")}
    return by_name | throughputs | percentiles | _costs(best) | {"size_mib": model.size_mib} | _quality_figures(model.quality)


def _costs(arrangement: Arrangement) -> dict[str, Any]:
    return {key: getattr(arrangement, key) for key in ARRANGEMENT_COSTS}


def _served_figures(served: Served) -> dict[str, Any]:
    loads: dict[str, Any] = {}
    for load in served.loads:
        steps = {name: asdict(step) for name, step in load.steps.items()}
        own = {key: getattr(load, key) for key in LOAD_COSTS} | {"split": asdict(load.split)}
        loads[load.name] = asdict(load.speed) | own | steps
    costs = {key: getattr(served, key) for key in SERVED_COSTS}
    return loads | costs | _quality_figures(served.quality)


def _quality_figures(quality: Quality) -> dict[str, float | None]:
    drop = {} if quality.drop is None else {"metric_drop": quality.drop.value}
    return quality.metrics | {key: getattr(quality, key) for key in QUALITIES} | drop


def flatten(prefix: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers in a tree of figures, each by its dotted name after ``prefix``."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(f"{prefix}{key}.", value)
        elif value is not None:
            yield f"{prefix}{key}", float(value)
