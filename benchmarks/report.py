"""What a benchmark found: one object, written as ``report.json``, ``report.md`` and the raw samples behind both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import Spans, Speed
from serving.errors import DataError

SCHEMA_VERSION = 2
_NO_REPORT = "give the report.json of an earlier benchmark"


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Answers to labelled rows.

    Args:
        rows: how many.
        metrics: the task's metric, every figure of it.
        agreement: share of rows whose label is the original's.
        max_score_difference: largest difference of any score from the original's; None where answers hold no numbers.
    """

    rows: int
    metrics: dict[str, float]
    agreement: float
    max_score_difference: float | None


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """One way of running a model in process.

    Args:
        name: ``b32`` is 32 rows per call, ``p2t1`` two processes of one thread each.
        processes, threads, batch: processes side by side, threads of one operator in each, rows per call.
        load_seconds: from an empty process to the first answer.
        peak_rss_mib: resident memory of all processes together, MiB.
        gpu_memory_mib: GPU memory, MiB; None without one.
    """

    name: str
    processes: int
    threads: int
    batch: int
    speed: Speed
    load_seconds: float
    peak_rss_mib: float
    gpu_memory_mib: float | None


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """A model run in process.

    Args:
        kind: ``pytorch``, ``pipeline`` (of transformers) or ``onnx``.
        precision: what really ran, told by the file or the tensors, never by the caller.
        sha256: of the file that ran.
        arrangements: by name.
    """

    kind: str
    precision: str
    device: str
    file: str
    sha256: str
    arrangements: dict[str, Arrangement]
    quality: Quality

    @property
    def name(self) -> str:
        """As gates address it."""
        return f"{self.kind}.{self.precision}"

    @property
    def best(self) -> str:
        """The arrangement with the highest throughput over all rounds."""
        return max(self.arrangements, key=lambda name: self.arrangements[name].speed.throughput)

    @property
    def quickest(self) -> str:
        """The arrangement with the lowest median latency over all rounds."""
        return min(self.arrangements, key=lambda name: self.arrangements[name].speed.p50_ms)


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
class Load:
    """A closed loop of ``concurrency`` clients over ``grpc`` or ``http``, one row per request.

    Args:
        executed_batch: of the model step: rows per execution by Triton's count. A model packaged with batching off may get
            several requests handed over together; it still runs them one by one.
        steps: by step, without the ensemble's name.
    """

    protocol: str
    concurrency: int
    speed: Speed
    executed_batch: float
    steps: dict[str, Step]

    @property
    def name(self) -> str:
        """As gates address it, after the model's name: ``c16`` is gRPC, ``http.c16`` HTTP."""
        return f"{'' if self.protocol == 'grpc' else f'{self.protocol}.'}c{self.concurrency}"


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

    @property
    def name(self) -> str:
        """As gates address it."""
        return f"served.{self.precision}"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A gate that was checked in every round.

    Args:
        comparison: what its sides came to, each the median of the rounds.
        held: in how many of the ``rounds`` it held.
        passed: whether these are more than half. The comparison of the medians need not say the same.
    """

    expression: str
    comparison: str
    held: int
    rounds: int
    passed: bool

    def __str__(self) -> str:
        return f"{self.comparison}, in {self.held} of {self.rounds} rounds"


@dataclass(frozen=True, kw_only=True)
class Regression:
    """A figure that is worse than in the baseline by more than allowed. ``change`` is relative: −0.2 is 20 % less."""

    figure: str
    before: float
    now: float
    change: float

    def __str__(self) -> str:
        return f"{self.figure} went from {self.before:.4g} to {self.now:.4g} ({self.change:+.1%})"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything one run of ``tritonize benchmark`` found.

    Args:
        created: UTC, ISO 8601.
        settings: what was measured on: rows, seconds, rounds, seed …
        main_metric: the figure of the task's metric that stands for its quality.
        rounds: for every round the figures that each round has of its own (throughput, percentiles, Triton's statistics), by the
            names of :meth:`figures`.
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
    gates: list[Gate]
    regressions: list[Regression]

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
    return by_name | throughputs | percentiles | _costs(best) | _quality_figures(model.quality)


def _costs(arrangement: Arrangement) -> dict[str, Any]:
    return {key: getattr(arrangement, key) for key in ("load_seconds", "peak_rss_mib", "gpu_memory_mib")}


def _served_figures(served: Served) -> dict[str, Any]:
    loads: dict[str, Any] = {}
    for load in served.loads:
        steps = {name: asdict(step) for name, step in load.steps.items()}
        loads[load.name] = asdict(load.speed) | {"executed_batch": load.executed_batch} | steps
    memory = {key: getattr(served, key) for key in ("load_seconds", "peak_rss_mib", "pss_mib", "gpu_memory_mib")}
    return loads | memory | _quality_figures(served.quality)


def _quality_figures(quality: Quality) -> dict[str, float | None]:
    return quality.metrics | {"agreement": quality.agreement, "max_score_difference": quality.max_score_difference}


def flatten(prefix: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers in a tree of figures, each by its dotted name after ``prefix``."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(f"{prefix}{key}.", value)
        elif value is not None:
            yield f"{prefix}{key}", float(value)


def write_report(folder: Path, report: Report, samples: Mapping[str, Spans], markdown: str) -> None:
    """Write ``report.json``, ``report.md`` and ``samples.npz`` into ``folder``.

    ``samples.npz`` holds ``[calls, 2]`` INT64, start and end of every call in ns, by the figure's name and the round: ``….r1``,
    and where it was measured in processes side by side the process: ``….r1.0``.
    """
    content = {"schema_version": SCHEMA_VERSION, **asdict(report), "figures": report.figures()}
    (folder / "report.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown, encoding="utf-8")
    with (folder / "samples.npz").open("wb") as file:
        np.savez_compressed(file, **dict(samples))  # type: ignore[arg-type]


def read_figures(path: Path) -> dict[str, float]:
    """The figures of an earlier ``report.json``.

    Raises:
        DataError: the file is no report, or of another schema version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no baseline at {path}", hint=_NO_REPORT) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a benchmark report: {error}", hint=_NO_REPORT) from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION or "figures" not in content:
        raise DataError(f"{path} is not a benchmark report of schema version {SCHEMA_VERSION}", hint=_NO_REPORT)
    return {str(name): float(value) for name, value in content["figures"].items()}
