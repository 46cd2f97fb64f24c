"""Tables of a report as plain text; each page formats and escapes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields

from benchmarks.measurements import ChangedAnswer, InProcess, Quality, Served, Split
from benchmarks.pages.formatting import NONE, interval, marked, number, rate, unsteady
from benchmarks.pages.growth import growths
from benchmarks.pages.headline import original, real_loads
from benchmarks.pages.table import Table
from benchmarks.report import Report
from benchmarks.speed import RoundSpeed, Speed
from benchmarks.steps import STEPS

SPEED = ("rows/s", "p50 ms", "p90 ms", "p95 ms", "p99 ms")
LATE = 0.01
"""Share of an open loop's requests that were sent late. Beyond this, it is shown."""


def glance(report: Report) -> Table:
    """Tabulate every model in one row: best throughput, best latency, and loss of quality."""
    metric = report.main_metric
    first = original(report)
    base = first.best.speed.throughput if first is not None else None
    rows = []
    for model in report.in_process:
        speeds = _best(model.best.speed, model.quickest.speed, base)
        rows.append([model.name, *speeds, *_lost(model.quality, metric), number(model.best.peak_rss_mib)])
    if report.served is not None and (loads := real_loads(report.served)):
        speeds = _best(loads[0].speed, min((load.speed for load in loads), key=lambda speed: speed.p50_ms), base)
        lost, memory = _lost(report.served.quality, metric), number(report.served.peak_rss_mib)
        rows.append([report.served.name, *speeds, *lost, memory])
    against = f" × is against {first.name}.{first.best.name}." if first is not None else ""
    return Table(
        name="glance",
        title="At a glance",
        head=["", "best rows/s", "×", "lowest p50 ms", f"{metric} (95 %)", "lost (95 %)", "peak RSS MiB"],
        rows=rows,
        notes=[
            f"Best rows/s and lowest p50 are those of different arrangements, or loads.{against}",
            unsteady(speed for _, speed in report.speeds()),
        ],
    )


def _best(best: Speed, quickest: Speed, base: float | None) -> list[str]:
    times = NONE if base is None else f"{best.throughput / base:.2f}"
    return [marked(best), times, f"{quickest.p50_ms:.2f}"]


def _lost(quality: Quality, metric: str) -> list[str]:
    main = number(quality.metrics.get(metric), ".4f") if quality.main is None else interval(quality.main)
    return [main, interval(quality.drop)]


def gates(report: Report) -> Table:
    """Tabulate every gate with the values of its sides, failed gates first."""
    rows = []
    for gate in sorted(report.gates, key=lambda gate: gate.passed):
        result = "held" if gate.passed else "failed" if gate.missed is None else f"failed, {gate.missed}"
        rows.append([gate.expression, result, gate.why or gate.comparison, f"{gate.held} of {gate.rounds}"])
    return Table(name="gates", title="Gates", head=["gate", "", "medians of the rounds", "held in rounds"], rows=rows, words=3)


def regressions(report: Report) -> Table:
    """Tabulate every figure that is worse than the baseline allows, the largest change first."""
    rows = []
    for one in report.regressions:
        change = one.description.replace("-", "−")
        rows.append([one.figure, f"{one.before:.4g}", f"{one.now:.4g}", change, one.limits])
    head = ["figure", "before", "now", "change", "allowed"]
    return Table(name="regressions", title="Worse than the baseline", head=head, rows=rows)


def in_process(report: Report) -> Table:
    """Tabulate every arrangement of every model."""
    energy = any(one.joules_per_row is not None for model in report.in_process for one in model.arrangements.values())
    head = ["", "processes × threads, batch", *SPEED, "load s", "first answer s", "peak RSS MiB", "GPU MiB"]
    rows = []
    for model in report.in_process:
        for name, one in model.arrangements.items():
            mark = " (best)" if one == model.best and len(model.on_real_rows) > 1 else ""
            how = f"{one.processes} × {one.threads}, {one.batch}" + (f", {one.length} tokens" if one.length else "") + mark
            costs = [f"{one.load_seconds:.1f}", f"{one.first_answer_seconds:.2f}", f"{one.peak_rss_mib:.0f}"]
            drawn = [number(one.joules_per_row, ".3g")] if energy else []
            rows.append([f"{model.name}.{name}", how, *_speed(one.speed), *costs, number(one.gpu_memory_mib), *drawn])
    return Table(name="in-process", title="In process", head=head + (["J per row"] if energy else []), rows=rows, words=2)


def models(report: Report) -> Table:
    """Tabulate files, sizes and fused operators of the models."""
    rows = [[one.name, one.device, one.file, _fused(one), one.sha256[:12], f"{one.size_mib:.1f}"] for one in report.in_process]
    if report.served is not None:
        own = report.served
        rows.append([own.name, NONE, "as packaged", NONE, own.sha256[:12], f"{own.size_mib:.1f}"])
    head = ["", "device", "file", "fused operators", "sha256 begins", "MiB"]
    return Table(name="models", title="What was run", head=head, rows=rows, words=5)


def _fused(model: InProcess) -> str:
    if model.fused_operators is None:
        return NONE
    return ", ".join(f"{count} {kind}" for kind, count in sorted(model.fused_operators.items())) or "none"


def _speed(speed: RoundSpeed) -> list[str]:
    first = marked(speed) if isinstance(speed, Speed) else rate(speed.throughput)
    return [first, *(f"{value:.2f}" for value in (speed.p50_ms, speed.p90_ms, speed.p95_ms, speed.p99_ms))]


def served(found: Served) -> Table:
    """Tabulate every load on the server."""
    energy = any(load.joules_per_row is not None for load in found.loads)
    rows = []
    for load in found.loads:
        how = (
            f"{load.concurrency} client{'s' * (load.concurrency != 1)}"
            if load.concurrency is not None
            else f"{rate(load.rate or 0)} requests/s at random"
        )
        how += f", {load.length} tokens" if load.length else ""
        how += f", {load.delayed:.0%} of them sent late" if load.delayed >= LATE else ""
        drawn = [number(load.joules_per_row, ".3g")] if energy else []
        rows.append([load.name, f"{load.protocol}, {how}", *_speed(load.speed), number(load.executed_batch, ".2f"), *drawn])
    package = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.package.items())
    gpu = "" if found.gpu_memory_mib is None else f" Memory in use on the GPU by all programs: {number(found.gpu_memory_mib)} MiB."
    notes = [
        f"{found.server}; {package}.",
        f"From start to first answers: {number(found.load_seconds, '.1f')} s. Process tree under load: peak RSS "
        f"{number(found.peak_rss_mib)} MiB, PSS {number(found.pss_mib)} MiB.{gpu}",
    ]
    if found.package.get("batching") == "off":
        notes.append("Batching is off: the server runs the requests of an executed batch one by one.")
    head = ["", "load", *SPEED, "executed batch", *(["J per row"] if energy else [])]
    return Table(name="served", title="Served", head=head, rows=rows, words=2, notes=notes)


def split(found: Served) -> Table:
    """Tabulate the parts of a request's time."""
    absent = {step for step in STEPS if not any(step in load.steps for load in found.loads)}
    parts = [part.name for part in fields(Split) if part.name not in absent]
    rows = []
    for load in found.loads:
        if load.split is None:
            continue
        times = [value / 1e3 for part, value in asdict(load.split).items() if part not in absent]
        rows.append([load.name, *(f"{value:.2f}" for value in times), f"{sum(times):.2f}"])
    notes = ["Means, ms. Ensemble: Triton's own scheduling and the copies between steps; client: the load generator's packing."]
    if absent:
        notes.append(f"The layout is fused: the model's time includes {' and '.join(sorted(absent, reverse=True))}.")
    return Table(name="split", title="Time split", head=["ms", *parts, "together"], rows=rows, notes=notes)


def steps(found: Served) -> Table:
    """Tabulate Triton's statistics of the ensemble's steps."""
    rows = []
    for load in found.loads:
        for name, step in load.steps.items():
            times = [f"{value:.0f}" for value in (step.queue_us, step.compute_us, step.cost_us)]
            rows.append([f"{load.name} {name}", f"{step.executed_batch:.2f}", *times])
    head = ["", "executed batch", "queued µs", "in the step µs", "busy µs per row"]
    return Table(name="steps", title="Steps, by Triton's statistics", head=head, rows=rows)


def quality(report: Report) -> Table:
    """Tabulate the quality of the answers to the labelled rows."""
    qualities = report.qualities()
    main = report.main_metric
    others = [name for name in dict.fromkeys(name for one in qualities.values() for name in one.metrics) if name != main]
    by_row = any(one.row_agreement is not None for one in qualities.values())
    rows = [
        [
            name,
            *_lost(one, main),
            *(number(one.metrics.get(other), ".4f") for other in others),
            f"{one.agreement:.2%}",
            *([NONE if one.row_agreement is None else f"{one.row_agreement:.2%}"] if by_row else []),
            number(one.p99_score_change, ".2g"),
            number(one.max_score_change, ".2g"),
            number(one.calibration_error, ".4f"),
            number(one.max_score_difference, ".2g"),
            number(one.max_logit_difference, ".2g"),
            str(one.rows),
        ]
        for name, one in qualities.items()
    ]
    differences = ["largest score difference", "largest logit difference"]
    agreements = ["labels as the original", *(["rows as the original"] if by_row else [])]
    changes = ["score change, 99th percentile", "largest score change"]
    head = ["", f"{main} (95 %)", "lost (95 %)", *others, *agreements, *changes, "calibration error", *differences, "rows"]
    note = (
        "Intervals are bootstrapped over the rows. The loss is computed on the same rows, so its interval decides: if it contains "
        "0, no loss was shown. Score change: of the label that the original gives. "
        "Calibration error, 0 to 1: how far a score is from how often its label is right."
    )
    broken = [
        f"⚠ {name}: the answers to {one.not_finite} of {one.rows} rows hold NaN or infinity."
        for name, one in qualities.items()
        if one.not_finite
    ]
    return Table(name="quality", title="Quality", head=head, rows=rows, notes=[*broken, note])


def growth(report: Report) -> Table:
    """Tabulate the laws fitted to how cost grows, or why none could be fitted."""
    rows = []
    for one in growths(report):
        points = ", ".join(str(point.x) for point in one.points)
        if one.fit is None:
            rows.append([one.name, f"{one.axis}: {points}", one.way, f"no fit: {one.why}", NONE, NONE])
        else:
            rows.append([one.name, f"{one.axis}: {points}", one.way, one.fit.formula, number(one.fit.r2, ".3f"), one.fit.meaning])
    note = (
        "Time per call is 1000 · rows in flight / (rows/s), a mean, non-negative least squares. Clients: Gunther's universal "
        "scalability law, N clients. R² is — where there are no more points than coefficients: any law then fits."
    )
    head = ["", "measured at", "with", "law", "R²", "it says"]
    return Table(name="growth", title="How cost grows", head=head, rows=rows, words=6, notes=[note])


def details(report: Report) -> Iterator[Table]:
    """Yield the tables of everything that was measured."""
    yield quality(report)
    yield in_process(report)
    if report.served is not None:
        yield served(report.served)
        yield split(report.served)
        yield steps(report.served)
    if growths(report):
        yield growth(report)
    yield models(report)


def changed_answers(report: Report) -> dict[str, list[ChangedAnswer]]:
    """List the answers that differ most from the original's by model, the served one first."""
    return {name: quality.changed_answers for name, quality in reversed(report.qualities().items()) if quality.changed_answers}
