"""The conclusion of a report and its key figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class Key:
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
        text = _all(len(report.gates))
    evaluated = bool(report.gates)
    if compared is not None:
        text += f". Against the baseline: {compared.summary}"
        evaluated = evaluated or any(one.verdict != "not compared" for one in compared.figures)
    passed = not failed and not report.regressions if evaluated else None
    return Conclusion(passed=passed, text=f"{text}.", notes=compared.remarks if compared is not None else [])


def _all(gates: int) -> str:
    return "The one gate held" if gates == 1 else f"All {gates} gates held"


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
    loads = real_loads(served)
    if loads:
        best, quickest = loads[0], min(loads, key=lambda load: load.speed.p50_ms)
        yield Key(
            label="rows/s served",
            value=f"{best.speed.throughput:.0f}",
            note=f"{served.precision}, {_clients(best)}: {marked(best.speed)}, p99 {best.speed.p99_ms:.3g} ms",
        )
        yield from _times(report, best.speed.throughput)
        yield Key(
            label="ms, one answer",
            value=f"{quickest.speed.p50_ms:.3g}",
            note=f"p50 with {_clients(quickest)}, p99 {quickest.speed.p99_ms:.3g} ms",
        )
    yield from _quality(report, served.quality)
    memory = served.pss_mib if served.pss_mib is not None else served.peak_rss_mib
    if memory is not None:
        kind = "shared pages counted once" if served.pss_mib is not None else "shared pages counted in every process"
        yield Key(label="MiB in memory", value=f"{memory:.0f}", note=f"the server's process tree under load, {kind}")


def _clients(load: Load) -> str:
    return f"{load.concurrency} client{'s' if load.concurrency != 1 else ''} over {load.protocol}"


def _in_process(report: Report) -> Iterator[Key]:
    own = [model for model in report.in_process if model.kind in ("onnx", "tensorrt")]
    if not own:
        return
    model = max(own, key=lambda one: one.arrangements[one.best].speed.throughput)
    best, quickest = model.arrangements[model.best], model.arrangements[model.quickest]
    yield Key(
        label="rows/s in process",
        value=f"{best.speed.throughput:.0f}",
        note=f"{model.name}.{model.best}: {marked(best.speed)}, p99 {best.speed.p99_ms:.3g} ms a call",
    )
    yield from _times(report, best.speed.throughput)
    yield Key(label="ms a call", value=f"{quickest.speed.p50_ms:.3g}", note=f"p50 of {model.name}.{model.quickest}")
    yield from _quality(report, model.quality)
    yield Key(label="MiB in memory", value=f"{best.peak_rss_mib:.0f}", note=f"peak RSS of {model.name}.{model.best}")


def _times(report: Report, throughput: float) -> Iterator[Key]:
    first = original(report)
    if first is None:
        return
    own = first.arrangements[first.best].speed
    yield Key(
        label="the original's rows/s",
        value=f"×{throughput / own.throughput:.1f}",
        note=f"against {first.name}.{first.best}, the original at its best: {marked(own)} rows/s",
    )


def _quality(report: Report, quality: Quality) -> Iterator[Key]:
    metric = report.main_metric
    if quality.drop is not None:
        yield Key(
            label=f"{metric} lost",
            value=number(quality.drop.value, ".4f").replace("-", "−"),
            note=f"95 % interval {interval(quality.drop).partition(' ')[2].strip('()')}; {metric} {interval(quality.main)}",
        )
    elif metric in quality.metrics:
        yield Key(label=metric, value=f"{quality.metrics[metric]:.4f}", note=f"on {quality.rows} rows")
