"""Which figures a benchmark will find, as far as that is known before anything is measured: a gate on others is told at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product

from benchmarks.gates import closest, figures_in
from benchmarks.in_process import tensorrt_precisions
from benchmarks.inputs import BenchmarkInputs
from benchmarks.report import ARRANGEMENT_COSTS, LOAD_COSTS, QUALITIES, SERVED_COSTS, Split, Step
from benchmarks.speed import RoundSpeed, Speed
from serving.errors import DataError

_SPEED = tuple(field.name for field in fields(Speed))
_STEPS = ("preprocess", "model", "postprocess")
_QUALITY = (*QUALITIES, "metric_drop")
ARRANGEMENT = (*_SPEED, *ARRANGEMENT_COSTS)
MODEL = (
    *(field.name for field in fields(RoundSpeed)),
    "throughput_low",
    "throughput_high",
    *ARRANGEMENT_COSTS,
    "size_mib",
    *_QUALITY,
)
LOAD = (
    *_SPEED,
    *LOAD_COSTS,
    *(f"split.{field.name}" for field in fields(Split)),
    *(f"{step}.{field.name}" for step in _STEPS for field in fields(Step)),
)
SERVED = (*SERVED_COSTS, *_QUALITY)
"""Kinds of figures: of an arrangement, a model in process, a load, what is served."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Args:
    models: names of what runs in process.
    served: name of what is served; None where nothing is.
    loads: on that.
    metrics: the task's figures of quality; None where it is not known which there are.
    """

    models: Sequence[str]
    served: str | None
    loads: Sequence[str]
    metrics: Sequence[str] | None

    @property
    def ways(self) -> list[str]:
        """What will be measured, by the names that its figures begin with."""
        return [*self.models, *(f"{self.served}.{load}" for load in self.loads)]

    def reason_against(self, name: str) -> str:
        """Why there will be no figure ``name``; empty where there may be one."""
        known = list(self._kinds_beside(name))
        if not known:
            return f"these will: {', '.join(self.ways)}"
        for prefix, kinds in known:
            if kinds is None or name.removeprefix(f"{prefix}.") in kinds:
                return ""
        names = [f"{prefix}.{kind}" for prefix, kinds in known for kind in kinds or ()]
        return f"close to it: {closest(name, names) or ', '.join(names)}"

    def _kinds_beside(self, name: str) -> Iterator[tuple[str, Sequence[str] | None]]:
        """What ``name`` may begin with, and which figures that has; None for any."""
        for model in self.models:
            rest = name.removeprefix(f"{model}.")
            if rest != name and "." in rest:  # how many processes and threads there will be is the machine's to say
                yield f"{model}.{rest.partition('.')[0]}", ARRANGEMENT
            elif rest != name:
                yield model, None if self.metrics is None else (*MODEL, *self.metrics)
        if self.served is None:
            return
        for load in self.loads:
            if name.startswith(f"{self.served}.{load}."):
                yield f"{self.served}.{load}", LOAD
        if name.rpartition(".")[0] == self.served:
            yield self.served, None if self.metrics is None else (*SERVED, *self.metrics)


def expected(inputs: BenchmarkInputs, *, exported: bool, served: str | None, own_rows: bool) -> Expected:
    """What ``inputs`` will find.

    Args:
        exported: the graph as Optimum exports it runs too.
        served: the precision that is served, None where nothing is.
        own_rows: quality is measured on the bundle's own rows, of which the bundle says what the metric finds.
    """
    found = inputs.bundle.manifest.original.metrics
    known = own_rows and inputs.bundle.task.main_metric in found
    return Expected(
        models=_models(inputs, exported=exported),
        served=None if served is None else f"served.{served}",
        loads=[] if served is None else _loads(inputs),
        metrics=list(found) if known else None,
    )


def require_expected(gates: Sequence[str], found: Expected) -> None:
    """Tell now, rather than after minutes, that a gate names what will not be measured.

    Raises:
        DataError: with what will be.
    """
    for expression in gates:
        for name in figures_in(expression):
            if reason := found.reason_against(name):
                raise DataError(f"gate {expression!r}: {name} will not be measured", hint=reason)


def _models(inputs: BenchmarkInputs, *, exported: bool) -> list[str]:
    half = "fp16" if inputs.device == "gpu" else "bf16"
    names = ["pytorch.fp32", f"pytorch.{half}", *(f"onnx.{precision}" for precision in inputs.precisions)]
    names += [f"tensorrt.{precision}" for precision in tensorrt_precisions(inputs) if exported]
    also = {"pipeline": inputs.bundle.task.has_pipeline, "compiled": inputs.compiled, "exported": exported}
    return [*names, *(f"{kind}.fp32" for kind, runs in also.items() if runs)]


def _loads(inputs: BenchmarkInputs) -> list[str]:
    closed = [
        f"{'' if protocol == 'grpc' else f'{protocol}.'}c{concurrency}"
        for protocol, concurrency in product(inputs.protocols, inputs.concurrencies)
    ]
    first = "" if inputs.protocols[0] == "grpc" else f"{inputs.protocols[0]}."
    by_length = [f"{first}c{inputs.concurrencies[0]}l{length}" for length in inputs.lengths]
    return [*closed, *by_length, *(f"{first}{loop.name}" for loop in inputs.open_loops)]
