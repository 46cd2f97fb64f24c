"""Figures that a benchmark will measure, as far as they are known in advance: a gate on other figures is refused at once.

Their names are those of a report with the planned models and loads, whose values are all zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.gates import closest, figures_in
from benchmarks.inputs import BenchmarkInputs
from benchmarks.measurements import Arrangement, Estimate, InProcess, Load, Quality, Served, Split, Step
from benchmarks.model_runs import planned_loads, planned_runs
from benchmarks.report import BUNDLE_QUALITIES, figures_of
from benchmarks.speed import Speed
from serving.errors import DataError
from serving.manifests import RepositoryManifest
from serving.model_names import steps_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Measurement = TypeVar("Measurement", bound="DataclassInstance")


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
        """State why there will be no figure of a name, with the closest figures; empty if there may be one."""
        owner = name.rpartition(".")[0]
        if name in self.figures or owner in self.models:
            return ""
        while owner.count("."):
            if beside := [figure for figure in self.figures if figure.startswith(f"{owner}.")]:
                return f"close to it: {closest(name, beside) or ', '.join(sorted(beside))}"
            owner = owner.rpartition(".")[0]
        return f"these will: {', '.join(self.ways)}"


def expected(inputs: BenchmarkInputs, *, served: RepositoryManifest | None) -> Expected:
    """Name the figures that a benchmark will measure; ``served`` is the manifest of the package, None without a server."""
    metrics = inputs.bundle.manifest.original.metrics
    known = inputs.options.test is None and inputs.task.main_metric in metrics
    quality = zero(
        Quality, metrics=dict.fromkeys(metrics if known else (), 0.0), drop=zero(Estimate), **dict.fromkeys(BUNDLE_QUALITIES)
    )
    models = _models(inputs, quality)
    names = [model.name for model in models]
    if served is None:
        return Expected(ways=names, figures=frozenset(figures_of(models, None)), models=() if known else names)
    measured = {
        "speed": zero(Speed),
        "tokens": None,
        "steps": dict.fromkeys(steps_of(served.layout), zero(Step)),
        "split": zero(Split),
    }
    loads = [zero(Load, **asdict(mode), **measured) for mode in planned_loads(inputs)]
    ensemble = zero(Served, precision=served.precision, loads=loads, quality=quality)
    return Expected(
        ways=[*names, *(f"{ensemble.name}.{load.name}" for load in loads)],
        figures=frozenset(figures_of(models, ensemble)),
        models=() if known else [*names, ensemble.name],
    )


def require_expected(gates: Sequence[str], found: Expected) -> None:
    """Refuse gates on figures that will not be measured, now rather than after minutes.

    Raises:
        DataError: A gate names another figure; the hint has the closest ones.
    """
    for expression in gates:
        for name in figures_in(expression):
            if reason := found.reason_against(name):
                raise DataError(f"gate {expression!r}: {name} will not be measured", hint=reason)


def _models(inputs: BenchmarkInputs, quality: Quality) -> list[InProcess]:
    if inputs.options.exported:
        inputs = replace(inputs, exported=Path("model.onnx"))  # not exported yet; only names matter here
    found: dict[str, InProcess] = {}
    for run in planned_runs(inputs, Path()):
        model = zero(InProcess, kind=run.job.backend, precision=run.precision, arrangements={}, quality=quality)
        arrangements = found.setdefault(run.model, model).arrangements
        for batch, length in run.calls:
            name = run.arrangement(batch, length)
            arrangements[name] = zero(Arrangement, name=name, length=length, speed=zero(Speed), tokens=None)
    return list(found.values())


def zero(which: type[Measurement], /, **known: Any) -> Measurement:
    """Make a measurement in which all but the known fields are zero."""
    return which(**dict.fromkeys((one.name for one in fields(which)), 0) | known)
