"""A report as Markdown tables, for a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.report import InProcess, Report, Served
from benchmarks.speed import Speed

SPEED = ("rows/s", "p50 ms", "p90 ms", "p95 ms", "p99 ms")
WIDE = 1.5
"""Fastest round over slowest, from which on a figure says more about the machine than about what was measured."""
STOLEN_PERCENT = 1


def render(report: Report) -> str:
    """The whole report."""
    parts = [f"# Benchmark of {report.name}", _machine(report), _in_process(report.in_process)]
    if report.served is not None:
        parts += [_served(report.served), _steps(report.served)]
    parts.append(_quality(report))
    if report.gates:
        rows = [["held" if gate.passed else "**failed**", f"`{gate.expression}`", str(gate)] for gate in report.gates]
        parts.append("## Gates\n\n" + _table(["", "gate", "figures"], rows))
    if report.regressions:
        rows = [[f"`{one.figure}`", f"{one.before:.4g}", f"{one.now:.4g}", f"{one.change:+.1%}"] for one in report.regressions]
        parts.append("## Worse than the baseline\n\n" + _table(["figure", "before", "now", "change"], rows))
    return "\n\n".join(parts) + "\n"


def _machine(report: Report) -> str:
    found, settings = report.environment, report.settings
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    gpus = "; ".join(found["gpus"]) or "no GPU"
    return (
        f"{report.created} · commit {found['commit'] or 'unknown'} · {found['cpu']}, {found['cores']} cores, "
        f"{found['memory_mib']} MiB, {gpus} · {found['busy_percent']:.0f} % busy with other work when it began{_stolen(found)}\n\n"
        f"{versions}\n\n"
        f"All on the same {settings['rows']} texts, tokenization counted, {settings['duration']:g} s or more each, in turns: "
        f"{settings['rounds']} rounds, each on its own share of the texts. rows/s is the median of the rounds (lowest–highest), "
        f"latencies are those of all rounds together; quality on {settings['labelled_rows']} labelled rows."
    )


def _stolen(environment: dict[str, Any]) -> str:
    percent = environment["stolen_percent"]
    if percent is None or percent <= STOLEN_PERCENT:
        return ""
    return f" · the host took {percent:.0f} % of the processor time away while it ran"


def _in_process(models: Sequence[InProcess]) -> str:
    rows = []
    for model in models:
        for name, arrangement in model.arrangements.items():
            mark = " (best)" if name == model.best and len(model.arrangements) > 1 else ""
            how = f"{arrangement.processes} × {arrangement.threads}, {arrangement.batch}"
            memory = [f"{arrangement.load_seconds:.1f}", f"{arrangement.peak_rss_mib:.0f}", _number(arrangement.gpu_memory_mib)]
            rows.append([f"`{model.name}.{name}`{mark}", how, *_speed(arrangement.speed), *memory])
    head = ["in process", "processes × threads, batch", *SPEED, "load s", "peak RSS MiB", "GPU MiB"]
    speeds = [arrangement.speed for model in models for arrangement in model.arrangements.values()]
    return "## In process\n\n" + _table(head, rows) + _spread(speeds)


def _served(served: Served) -> str:
    rows = [[load.protocol, str(load.concurrency), *_speed(load.speed), f"{load.executed_batch:.2f}"] for load in served.loads]
    package = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in served.package.items())
    load = "not known" if served.load_seconds is None else f"{served.load_seconds:.1f} s"
    notes = (
        f"From start to first answers: {load}. Process tree under load: peak RSS {_number(served.peak_rss_mib)} MiB, "
        f"PSS {_number(served.pss_mib)} MiB. GPU memory in use there, by whomever: {_number(served.gpu_memory_mib)} MiB."
    )
    if served.package.get("batching") == "off":
        notes += "\n\nBatching is off: an executed batch above 1 was handed over together and run one by one."
    head = ["protocol", "clients", *SPEED, "executed batch"]
    return (
        f"## Served ({served.server}, {package})\n\n{_table(head, rows)}{_spread(load.speed for load in served.loads)}\n\n{notes}"
    )


def _steps(served: Served) -> str:
    rows = []
    for load in served.loads:
        for name, step in load.steps.items():
            rows.append(
                [
                    f"{load.protocol} {load.concurrency}",
                    name,
                    f"{step.executed_batch:.2f}",
                    f"{step.queue_us:.0f}",
                    f"{step.compute_us:.0f}",
                    f"{step.cost_us:.0f}",
                ]
            )
    head = ["clients", "step", "executed batch", "queued µs", "in the step µs", "busy µs per row"]
    return "### Steps, by Triton's statistics\n\n" + _table(head, rows)


def _quality(report: Report) -> str:
    judged = [(model.name, model.quality) for model in report.in_process]
    if report.served is not None:
        judged.append((f"served.{report.served.precision}", report.served.quality))
    metrics = [report.main_metric, *(name for name in judged[0][1].metrics if name != report.main_metric)]
    rows = [
        [
            f"`{name}`",
            *(f"{quality.metrics[metric]:.4f}" if metric in quality.metrics else "—" for metric in metrics),
            f"{quality.agreement:.2%}",
            "—" if quality.max_score_difference is None else f"{quality.max_score_difference:.2g}",
            str(quality.rows),
        ]
        for name, quality in judged
    ]
    head = ["", *metrics, "labels as the original", "largest score difference", "rows"]
    return "## Quality\n\n" + _table(head, rows)


def _speed(speed: Speed) -> list[str]:
    return [throughput(speed), *(f"{value:.2f}" for value in (speed.p50_ms, speed.p90_ms, speed.p95_ms, speed.p99_ms))]


def throughput(speed: Speed) -> str:
    """The median of the rounds and, where they differ, the lowest and the highest."""
    low, high = f"{speed.throughput_low:.0f}", f"{speed.throughput_high:.0f}"
    return f"{speed.throughput:.0f}" + (f" ({low}–{high})" if low != high else "")


def _spread(speeds: Iterable[Speed]) -> str:
    widest = max(speed.throughput_high / speed.throughput_low for speed in speeds)
    if widest <= WIDE:
        return ""
    return (
        f"\n\nThe machine changed speed while measuring: rounds differ by up to ×{widest:.1f}. "
        "Compare by the gates' rounds, not by single figures."
    )


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
