"""The conclusion of a report and its key figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.measurements import InProcess, Load, Quality, Served
from benchmarks.pages.formatting import interval, marked, number
from benchmarks.report import Report


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """Whether gates and baseline were met.

    Attributes:
        passed: None if nothing was evaluated.
        notes: What limits the comparison with the baseline.
    """

    passed: bool | None
    text: str
    notes: list[str]


class Key(NamedTuple):
    """A key figure, and what it is of."""

    label: str
    value: str
    note: str


def conclusion(report: Report) -> Conclusion:
    """Draw the conclusion from the gates and the comparison with the baseline."""
    failed = [gate for gate in report.gates if not gate.passed]
    compared = report.baseline
    if not report.gates:
        text = "No gates were set" if compared is not None else "No gates were set, nothing was evaluated"
    elif failed:
        text = f"{len(failed)} of {len(report.gates)} gates failed, {len(report.gates) - len(failed)} held"
    else:
        text = "The one gate held" if len(report.gates) == 1 else f"All {len(report.gates)} gates held"
    evaluated = bool(report.gates)
    if compared is not None:
        text += f". Against the baseline: {compared.summary}"
        evaluated = evaluated or any(one.verdict != "not compared" for one in compared.figures)
    passed = not failed and not report.regressions if evaluated else None
    return Conclusion(passed=passed, text=f"{text}.", notes=compared.remarks if compared is not None else [])


def original(report: Report) -> InProcess | None:
    """Find the PyTorch original, which all models are compared with; None if it was not measured."""
    found = [model for model in report.in_process if model.kind == "pytorch"]
    return next((model for model in found if model.precision == "fp32"), found[0] if found else None)


def real_loads(served: Served) -> list[Load]:
    """List closed loops on rows as they are, the highest throughput first."""
    found = [load for load in served.loads if load.concurrency is not None and load.length is None]
    return sorted(found, key=lambda load: -load.speed.throughput)


def keys(report: Report) -> list[Key]:
    """List the key figures of the served model; without a server, of the fastest ONNX file in process."""
    return list(_served(report, report.served) if report.served is not None else _in_process(report))


def _served(report: Report, served: Served) -> Iterator[Key]:
    if loads := real_loads(served):
        best, quickest = loads[0].speed, min(loads, key=lambda load: load.speed.p50_ms)
        note = f"{served.precision}, {_clients(loads[0])}: {marked(best)}, p99 {best.p99_ms:.3g} ms"
        yield Key("rows/s served", f"{best.throughput:.0f}", note)
        yield from _times(report, best.throughput)
        note = f"p50 with {_clients(quickest)}, p99 {quickest.speed.p99_ms:.3g} ms"
        yield Key("ms, one answer", f"{quickest.speed.p50_ms:.3g}", note)
    yield from _quality(report, served.quality)
    memory = served.pss_mib if served.pss_mib is not None else served.peak_rss_mib
    if memory is not None:
        kind = "shared pages counted once" if served.pss_mib is not None else "shared pages counted in every process"
        yield Key("MiB in memory", f"{memory:.0f}", f"the server's process tree under load, {kind}")


def _clients(load: Load) -> str:
    return f"{load.concurrency} client{'s' if load.concurrency != 1 else ''} over {load.protocol}"


def _in_process(report: Report) -> Iterator[Key]:
    own = [model for model in report.in_process if model.kind in ("onnx", "tensorrt")]
    if not own:
        return
    model = max(own, key=lambda one: one.best.speed.throughput)
    best, quickest = model.best, model.quickest
    note = f"{model.name}.{best.name}: {marked(best.speed)}, p99 {best.speed.p99_ms:.3g} ms a call"
    yield Key("rows/s in process", f"{best.speed.throughput:.0f}", note)
    yield from _times(report, best.speed.throughput)
    yield Key("ms a call", f"{quickest.speed.p50_ms:.3g}", f"p50 of {model.name}.{quickest.name}")
    yield from _quality(report, model.quality)
    yield Key("MiB in memory", f"{best.peak_rss_mib:.0f}", f"peak RSS of {model.name}.{best.name}")


def _times(report: Report, throughput: float) -> Iterator[Key]:
    if (first := original(report)) is not None:
        own = first.best.speed
        note = f"against {first.name}.{first.best.name}, the original at its best: {marked(own)} rows/s"
        yield Key("the original's rows/s", f"×{throughput / own.throughput:.1f}", note)


def _quality(report: Report, quality: Quality) -> Iterator[Key]:
    metric = report.main_metric
    if quality.drop is not None:
        note = f"95 % interval {interval(quality.drop).partition(' ')[2].strip('()')}; {metric} {interval(quality.main)}"
        yield Key(f"{metric} lost", number(quality.drop.value, ".4f").replace("-", "−"), note)
    elif metric in quality.metrics:
        yield Key(metric, f"{quality.metrics[metric]:.4f}", f"on {quality.rows} rows")
