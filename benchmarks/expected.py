"""Figures that a benchmark will measure, as far as they are known in advance: a gate on other figures is refused at once.

Their names are those of a report with the planned models and loads, whose values are all zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.gates import closest, figures_in
from benchmarks.inputs import BenchmarkInputs
from benchmarks.measurements import Arrangement, Estimate, InProcess, Load, LoadMode, Quality, Served, Split, Step
from benchmarks.plan import planned_loads, planned_runs
from benchmarks.report import ARRANGEMENT_COSTS, SERVED_COSTS, figures_of
from benchmarks.speed import Speed
from benchmarks.steps import STEPS
from serving.errors import DataError

_SPEED = Speed(**dict.fromkeys(Speed.__dataclass_fields__, 0))
_STEP = Step(**dict.fromkeys(Step.__dataclass_fields__, 0))
_SPLIT = Split(**dict.fromkeys(Split.__dataclass_fields__, 0))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Names of the figures that will be measured.

    Attributes:
        ways: What will be measured, by the names that its figures begin with.
        figures: Names of all figures, but those of an unknown metric.
        models: Models that may have further metrics, as these are not known in advance; empty if they are known.
    """

    ways: Sequence[str]
    figures: frozenset[str]
    models: Sequence[str] = ()

    def reason_against(self, name: str) -> str:
        """State why there will be no figure of a name.

        Returns:
            The reason, with the closest figures; empty if there may be such a figure.
        """
        owner = name.rpartition(".")[0]
        if name in self.figures or owner in self.models:
            return ""
        while owner.count("."):
            if beside := [figure for figure in self.figures if figure.startswith(f"{owner}.")]:
                return f"close to it: {closest(name, beside) or ', '.join(sorted(beside))}"
            owner = owner.rpartition(".")[0]
        return f"these will: {', '.join(self.ways)}"


def expected(inputs: BenchmarkInputs, *, served: str | None) -> Expected:
    """Name the figures that a benchmark will measure.

    Args:
        inputs: What is measured.
        served: Precision of the served package; None without a server.
    """
    metrics = inputs.bundle.manifest.original.metrics
    known = inputs.options.test is None and inputs.task.main_metric in metrics
    quality = _quality(metrics if known else ())
    models = _models(inputs, quality)
    ensemble = None if served is None else _served(served, planned_loads(inputs), quality)
    loads = [] if ensemble is None else [f"{ensemble.name}.{load.name}" for load in ensemble.loads]
    names = [*(model.name for model in models), *([] if ensemble is None else [ensemble.name])]
    return Expected(
        ways=[*(model.name for model in models), *loads],
        figures=frozenset(figures_of(models, ensemble)),
        models=() if known else names,
    )


def require_expected(gates: Sequence[str], found: Expected) -> None:
    """Refuse gates on figures that will not be measured, now rather than after minutes.

    Args:
        gates: Expressions.
        found: Names of the figures that will be measured.

    Raises:
        DataError: A gate names another figure; the hint has the closest ones.
    """
    for expression in gates:
        for name in figures_in(expression):
            if reason := found.reason_against(name):
                raise DataError(f"gate {expression!r}: {name} will not be measured", hint=reason)


def _quality(metrics: Iterable[str]) -> Quality:
    zero = Estimate(value=0, low=0, high=0)
    return Quality(rows=0, metrics=dict.fromkeys(metrics, 0.0), agreement=0, max_score_difference=0, max_logit_difference=0,
                   drop=zero, calibration_error=0)  # fmt: skip


def _models(inputs: BenchmarkInputs, quality: Quality) -> list[InProcess]:
    if inputs.options.exported:
        inputs = replace(inputs, exported=Path("model.onnx"))  # not exported yet; only names matter here
    found: dict[str, InProcess] = {}
    for run in planned_runs(inputs, Path()):
        arrangements = {
            name: Arrangement(name=name, processes=0, threads=0, batch=batch, length=length, speed=_SPEED,
                              **dict.fromkeys(ARRANGEMENT_COSTS, 0))
            for batch, length in run.calls
            for name in [run.arrangement(batch, length)]
        }  # fmt: skip
        if run.model in found:
            found[run.model].arrangements.update(arrangements)
            continue
        found[run.model] = InProcess(kind=run.job.backend, precision=run.precision, device="", file="", sha256="", size_mib=0,
                                     fused_operators=None, arrangements=arrangements, quality=quality)  # fmt: skip
    return list(found.values())


def _served(precision: str, modes: Sequence[LoadMode], quality: Quality) -> Served:
    loads = [
        Load(**asdict(mode), speed=_SPEED, executed_batch=0, steps=dict.fromkeys(STEPS, _STEP), split=_SPLIT, joules_per_row=0)
        for mode in modes
    ]
    return Served(precision=precision, package={}, sha256="", server="", loads=loads, quality=quality,
                  **dict.fromkeys(SERVED_COSTS, 0))  # fmt: skip
