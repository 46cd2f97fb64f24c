"""The benchmark stage: options → one report, written to its folder, with its gates checked."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.comparing.compare import compare
from benchmarks.comparing.rendering import worse
from benchmarks.energy import find_meter
from benchmarks.expected import expected, require_expected
from benchmarks.gates import check_gate, parse_gate
from benchmarks.in_process import findings, loaded
from benchmarks.inputs import BenchmarkInputs, BenchmarkRows
from benchmarks.junit import write_junit
from benchmarks.load import find_perf_analyzer
from benchmarks.machine import ForeignWork, environment, stolen_percent
from benchmarks.pages import html, markdown
from benchmarks.preparation import BenchmarkOptions, exported_graph, model_inputs, read_inputs
from benchmarks.report import Report, length_key
from benchmarks.report_file import read_report, write_report
from benchmarks.rounds import measure_rounds
from benchmarks.row_lengths import mean_tokens
from benchmarks.samples import Samples, told
from benchmarks.served import ServerConnection, Target, UnderLoad, check_process, read_package, require_same_bundle
from benchmarks.speed import Spans
from serving.artifact import publish
from serving.errors import DataError, GateError

BUSY_PERCENT = 10


def run_benchmark(options: BenchmarkOptions, say: Callable[[str], None]) -> Report:
    """Measure, write the report, check the gates (in this order: a failed gate's report is there to read).

    Args:
        say: told one line per round, and in the end one per speed found.

    Returns:
        The report, gates and regressions in it; :func:`require_passed` turns those into an error.

    Raises:
        TritonizeError: anything that keeps it from being measured; what can be known beforehand is checked first.
    """
    if options.output.exists():
        raise DataError(f"{options.output} exists already", hint="give another folder with --output")
    for gate in options.gates:
        parse_gate(gate)
    baseline = _baseline(options.baseline) if options.baseline else None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonize-")))
        inputs = read_inputs(options, say)
        target = _target(options)
        stack.enter_context(closing(target.server) if target else nullcontext())
        served = target.package.precision if target is not None else None
        found = expected(inputs, exported=options.exported, served=served, own_rows=options.test is None)
        require_expected(options.gates, found)
        if options.exported:
            inputs = replace(inputs, exported=exported_graph(inputs, folder, say))
        report, samples = _measure(options, inputs, target, say)
    report = _with_gates(report, options.gates)
    try:
        report = report if baseline is None else replace(report, baseline=compare(baseline, report, options.allowed))
    except DataError as error:
        raise DataError(error.message, hint=f"{error.hint}; the report is {options.output / 'report.md'}") from error
    finally:  # a baseline that nothing can be held against is an error, and no reason to lose what was measured
        with publish(options.output) as folder:
            _write(folder, report, told(samples))
        if options.junit is not None:
            write_junit(options.junit, report)
    for regression in report.regressions:
        say(f"worse than the baseline: {regression}")
    return report


def _baseline(path: Path) -> Report:
    return read_report(path / "report.json" if path.is_dir() else path)[0]


def _with_gates(report: Report, gates: tuple[str, ...]) -> Report:
    by_round = report.figures_by_round()
    return replace(report, gates=[check_gate(expression, by_round) for expression in gates])


def require_passed(report: Report) -> None:
    """Raises:
    GateError: a gate failed or a figure is worse than the baseline allows; the message names the gates with both sides' values and
        by how much they were missed, and the figures that changed most.
    """
    parts = []
    failed = [f"{gate.expression}: {gate}" for gate in report.gates if not gate.passed]
    if failed:
        parts.append(f"{len(failed)} of {len(report.gates)} gates failed: {'; '.join(failed)}")
    if report.regressions:
        parts.append(worse(report.regressions))
    if parts:
        raise GateError(". ".join(parts), hint="every figure stands in the report")


def _target(options: BenchmarkOptions) -> Target | None:
    if options.endpoint is None:
        return None
    package = read_package(options.repository, options.name)
    load_generator = find_perf_analyzer(options.server_environment)
    require_same_bundle(package, options.bundle)
    check_process(options.endpoint, package)
    return Target(server=ServerConnection(options.endpoint, options.name), package=package, load_generator=load_generator)


def _measure(
    options: BenchmarkOptions, inputs: BenchmarkInputs, target: Target | None, say: Callable[[str], None]
) -> tuple[Report, dict[str, Spans]]:
    machine = environment()
    if machine["busy_percent"] > BUSY_PERCENT:
        say(f"the machine is {machine['busy_percent']:.0f} % busy with other work: speeds will come out lower than they are")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    before = psutil.cpu_times()
    energy = find_meter()
    under_load = UnderLoad(target, inputs, energy) if target is not None else None
    others = ForeignWork(under_load.process if under_load is not None else None)
    with loaded(inputs, energy, say) as in_process:
        ways = [way for one in in_process for way in one.ways]
        measure_rounds([*ways, *(under_load.ways if under_load else [])], inputs, say)
        foreign = others.percent()
        if foreign > BUSY_PERCENT:
            say(f"other processes took {foreign:.0f} % of the processor time meanwhile: speeds are lower than they are alone")
        found = findings(inputs, in_process)
    served, samples, rounds = None, found.samples, found.rounds
    if under_load is not None:
        served = under_load.found(found.original)
        samples = samples | under_load.samples(served)
        rounds = [one | other for one, other in zip(rounds, under_load.rounds(served), strict=True)]
    task = inputs.bundle.task
    report = Report(
        name=options.name,
        task=task.name,
        created=created,
        main_metric=task.main_metric,
        environment=machine | {"others_percent": foreign, "stolen_percent": stolen_percent(before, psutil.cpu_times())},
        settings=_settings(options, inputs),
        in_process=found.models,
        served=served,
        rounds=rounds,
        gates=[],
    )
    for figure, speed in report.speeds():
        say(f"{figure}: {markdown.throughput(speed)} rows/s, p50 {speed.p50_ms:.2f} ms, p99 {speed.p99_ms:.2f} ms")
    return report, samples


def _settings(options: BenchmarkOptions, inputs: BenchmarkInputs) -> dict[str, Any]:
    return {
        "rows": len(inputs.rows.timed[None]),
        "tokens": {
            length_key(length): mean_tokens(inputs.bundle, model_inputs(inputs.bundle), rows)
            for length, rows in inputs.rows.timed.items()
        },
        "labelled_rows": len(inputs.rows.labelled),
        "rows_sha256": _digest([inputs.rows.labelled, inputs.rows.references]),
        "timed_sha256": timed_checksums(inputs.rows),
        "duration": options.duration,
        "rounds": options.rounds,
        "seed": options.seed,
        "device": options.device,
        "max_length": inputs.bundle.max_length,
        "test": options.test,
        "bundle_created": inputs.bundle.manifest.created.isoformat(),
    }


def timed_checksums(rows: BenchmarkRows) -> dict[str, str]:
    """What tells the rows that speed is measured on from others, by length: reports of the same length can be compared by it."""
    return {length_key(length): _digest(timed) for length, timed in rows.timed.items()}


def _write(folder: Path, report: Report, samples: Samples) -> None:
    write_report(folder, report, samples)
    (folder / "report.md").write_text(markdown.render(report), encoding="utf-8")
    (folder / "report.html").write_text(html.render(report, samples), encoding="utf-8")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
