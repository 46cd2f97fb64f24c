"""The report of a benchmark: measured values only; every derived figure is computed from them.

A report is one tree of frozen dataclasses, which pydantic validates strictly when a ``report.json`` is read
(:mod:`benchmarks.report_file`): a field of another type, a field out of its bounds and an unknown field are errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass

from benchmarks.environment import Environment
from benchmarks.measurements import Arrangement, InProcess, Load, Quality, Served
from benchmarks.samples import Samples
from benchmarks.speed import Speed
from benchmarks.verdicts import BenchmarkGate, FigureComparison, ReportComparison

SCHEMA_VERSION = 6
OLDEST_VERSION = 3
"""Oldest schema version that can still be read: its fields have the same meaning, some under a former name."""

ARRANGEMENT_COSTS = ("load_seconds", "first_answer_seconds", "peak_rss_mib", "gpu_memory_mib", "joules_per_row")
SERVED_COSTS = ("load_seconds", "peak_rss_mib", "pss_mib", "gpu_memory_mib", "size_mib")
LOAD_COSTS = ("executed_batch", "joules_per_row")
BUNDLE_QUALITIES = ("perplexity", "perplexity_increase", "next_token_agreement")
"""Figures of models that generate, by the names of their fields."""
QUALITIES = (
    "agreement",
    "row_agreement",
    "p99_score_change",
    "max_score_change",
    "max_score_difference",
    "max_logit_difference",
    "calibration_error",
    "not_finite",
    *BUNDLE_QUALITIES,
)
"""Figures by the names of their fields; of quality beside the metrics and ``metric_drop``."""

Figures = Mapping[str, "float | int | Figures | None"]
"""A tree of figures by name; None stands for a figure that was not measured."""


def length_key(length: int | None) -> str:
    """Name rows of ``length`` tokens as in :class:`ReportSettings`."""
    return "as they are" if length is None else str(length)


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What a report was measured on.

    Attributes:
        tokens: Mean tokens of the timed rows by :func:`length_key`.
        rows_sha256: Checksum of the labelled rows and their labels.
        timed_sha256: Checksums of the timed rows by :func:`length_key`.
        duration: Seconds of timing per figure.
        max_length: Tokens at which rows are truncated; of a model that continues texts: tokens of a prompt and its answer.
        new_tokens: Tokens of every timed answer of a model that generates; None for other models.
        num_beams: Beams of an encoder-decoder, 1 is greedy; None for other models.
        test: Source of the labelled rows; None for those of the bundle.
    """

    rows: PositiveInt
    tokens: dict[str, NonNegativeFloat] = field(default_factory=dict)
    labelled_rows: PositiveInt
    rows_sha256: str | None = None
    timed_sha256: dict[str, str] = field(default_factory=dict)
    duration: NonNegativeFloat
    rounds: PositiveInt
    seed: int
    device: str
    max_length: PositiveInt
    test: str | None
    bundle_created: str
    new_tokens: PositiveInt | None = None
    num_beams: PositiveInt | None = None


@validated_dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Report:
    """Everything that one run of ``tritonize benchmark`` measured.

    Attributes:
        created: Start of the run, UTC, ISO 8601.
        main_metric: The figure of the task's metric that stands for its quality.
        rounds: The figures that each round has of its own (throughput, percentiles, Triton's statistics) by the names of
            :meth:`figures`, one dictionary per round.
        remarks: What was left out, or differs from the others, and why.
        samples: Raw samples behind every speed.
    """

    name: str
    task: str
    created: str
    main_metric: str
    environment: Environment
    settings: ReportSettings
    in_process: list[InProcess]
    served: Served | None
    rounds: Annotated[list[dict[str, float]], Field(min_length=1)]
    gates: list[BenchmarkGate]
    baseline: ReportComparison | None = None
    remarks: list[str] = field(default_factory=list)
    samples: Samples = field(repr=False)

    @property
    def generates(self) -> bool:
        """Whether the model generates its answers token by token."""
        return self.settings.new_tokens is not None

    @property
    def answers_whole(self) -> bool:
        """Whether the model generates its answers token by token, and they come whole."""
        return self.settings.num_beams is not None

    @property
    def regressions(self) -> list[FigureComparison]:
        """The figures that are worse than the baseline by more than the tolerance, the largest change first."""
        return self.baseline.of("worse") if self.baseline is not None else []

    def qualities(self) -> dict[str, Quality]:
        """Qualities by the name of the model, the served one last."""
        found = {model.name: model.quality for model in self.in_process}
        return found if self.served is None else found | {self.served.name: self.served.quality}

    def measured(self) -> Iterator[tuple[str, Arrangement | Load]]:
        """Every arrangement and load, by the name that its figures begin with."""
        for model in self.in_process:
            for name, arrangement in model.arrangements.items():
                yield f"{model.name}.{name}", arrangement
        if self.served is not None:
            for load in self.served.loads:
                yield f"{self.served.name}.{load.name}", load

    def speeds(self) -> Iterator[tuple[str, Speed]]:
        """Every speed, by the name that its figures begin with."""
        return ((name, one.speed) for name, one in self.measured())

    def figures(self) -> dict[str, float]:
        """Every figure by the dotted name that gates and baselines use.

        ``pytorch.fp32.throughput`` without an arrangement is the best arrangement's, ``…p50_ms`` (and the other percentiles) the
        quickest one's: the same arrangement in every round, the best or quickest over all of them. ``served.int8.c16.…`` is gRPC,
        ``served.int8.http.c16.…`` HTTP.
        """
        return figures_of(self.in_process, self.served)

    def figures_by_round(self) -> list[dict[str, float]]:
        """Every figure as each round found it; figures without rounds (quality, memory, loading) are the same in all."""
        figures = self.figures()
        return [figures | found for found in self.rounds]


def figures_of(in_process: Sequence[InProcess], served: Served | None) -> dict[str, float]:
    """Every figure of these models by its dotted name, see :meth:`Report.figures`."""
    tree: dict[str, Figures] = {model.name: _model_figures(model) for model in in_process}
    if served is not None:
        tree[served.name] = _served_figures(served)
    return dict(flatten("", tree))


def _model_figures(model: InProcess) -> Figures:
    by_name = {name: speed_figures(one) | _costs(one) for name, one in model.arrangements.items()}
    best, quickest = model.best, model.quickest
    throughputs = {key: value for key, value in speed_figures(best).items() if key.startswith(("throughput", "tokens_per"))}
    latencies = {key: value for key, value in speed_figures(quickest).items() if key.startswith(("p", "ttft", "itl"))}
    return by_name | throughputs | latencies | _costs(best) | {"size_mib": model.size_mib} | _quality_figures(model.quality)


def speed_figures(measured: Arrangement | Load) -> dict[str, float | None]:
    """Every figure of the speed of an arrangement or a load."""
    own = measured.tokens
    tokens = {} if own is None else asdict(own) | {"tokens_per_cpu_second": own.tokens_per_cpu_second}
    return asdict(measured.speed) | tokens


def _costs(arrangement: Arrangement) -> dict[str, float | None]:
    return {key: getattr(arrangement, key) for key in ARRANGEMENT_COSTS}


def _served_figures(served: Served) -> Figures:
    loads: dict[str, Figures] = {}
    for load in served.loads:
        own = {key: getattr(load, key) for key in LOAD_COSTS} | ({} if load.split is None else {"split": asdict(load.split)})
        loads[load.name] = speed_figures(load) | own | {name: asdict(step) for name, step in load.steps.items()}
    costs = {key: getattr(served, key) for key in SERVED_COSTS}
    return loads | costs | _quality_figures(served.quality)


def _quality_figures(quality: Quality) -> dict[str, float | None]:
    drop = {} if quality.drop is None else {"metric_drop": quality.drop.value}
    return quality.metrics | {key: getattr(quality, key) for key in QUALITIES} | drop


def flatten(prefix: str, tree: Figures) -> Iterator[tuple[str, float]]:
    """Yield the numbers in a tree of figures, each by its dotted name after ``prefix``."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(f"{prefix}{key}.", value)
        elif value is not None:
            yield f"{prefix}{key}", float(value)
