"""The benchmark stage: measure what the options ask for, write the report, check its gates."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.comparing.compare import compare
from benchmarks.comparing.rendering import worse
from benchmarks.energy import find_meter
from benchmarks.expected import expected, require_expected
from benchmarks.gates import check_gate, parse_gate
from benchmarks.generation.generation_report import generation_report
from benchmarks.in_process import findings, loaded
from benchmarks.inputs import BenchmarkInputs
from benchmarks.junit import write_junit
from benchmarks.load import find_perf_analyzer
from benchmarks.machine_watch import MachineWatch
from benchmarks.pages import html, markdown
from benchmarks.pages.formatting import throughput
from benchmarks.preparation import exported_graph, model_inputs, read_inputs
from benchmarks.report import Report, ReportSettings, length_key
from benchmarks.report_file import read_report, write_report
from benchmarks.rounds import TimedWay, measure_rounds
from benchmarks.row_checksums import checksum, timed_checksums
from benchmarks.row_lengths import mean_tokens
from benchmarks.samples import to_samples
from benchmarks.served import ServerConnection, Target, UnderLoad
from benchmarks.served_package import check_process, read_package, require_same_bundle
from serving.access import ClientAccess
from serving.artifact import publish
from serving.bundle import load_bundle
from serving.errors import DataError, GateError
from serving.install import triton_environment
from serving.reporting import logger
from serving.runtime.tasks._generation import GenerationTask


def run_benchmark(options: BenchmarkOptions) -> Report:
    """Measure, write the report, then check the gates: the report is there to read if a gate fails.

    Returns:
        The report with gates and regressions; :func:`require_passed` turns those into an error.

    Raises:
        TritonizeError: Something prevents the measurement; what can be known in advance is checked first.
    """
    if options.report_folder.exists():
        raise DataError(f"{options.report_folder} exists already", hint="give another folder with --output")
    for gate in options.gates:
        parse_gate(gate)
    baseline = read_report(options.baseline) if options.baseline else None
    report = _measured(options)
    by_round = report.figures_by_round()
    report = replace(report, gates=[check_gate(expression, by_round) for expression in options.gates])
    try:
        report = report if baseline is None else replace(report, baseline=compare(baseline, report, options.tolerances))
    except DataError as error:
        raise DataError(error.message, hint=f"{error.hint}; the report is {options.report_folder / 'report.md'}") from error
    finally:  # a baseline that cannot be compared is an error, but no reason to lose what was measured
        with publish(options.report_folder) as folder:
            write_report(folder, report)
            (folder / "report.md").write_text(markdown.render(report), encoding="utf-8")
            (folder / "report.html").write_text(html.render(report), encoding="utf-8")
        if options.junit is not None:
            write_junit(options.junit, report)
    for regression in report.regressions:
        logger.warning(f"worse than the baseline: {regression}")
    return report


def require_passed(report: Report) -> None:
    """Check that all gates held and nothing is worse than the baseline allows.

    Raises:
        GateError: A gate failed or a figure is worse; the message names the gates with both sides' values and by how much they
            were missed, and the figures that changed most.
    """
    parts = []
    failed = [f"{gate.expression}: {gate}" for gate in report.gates if not gate.passed]
    if failed:
        parts.append(f"{len(failed)} of {len(report.gates)} gates failed: {'; '.join(failed)}")
    if report.regressions:
        parts.append(worse(report.regressions))
    if parts:
        raise GateError(". ".join(parts), hint="every figure stands in the report")


def _measured(options: BenchmarkOptions) -> Report:
    """Measure the model, whatever its kind."""
    generates = isinstance(load_bundle(options.bundle_folder).task, GenerationTask)
    return generation_report(options) if generates else _encoder_report(options)


def _encoder_report(options: BenchmarkOptions) -> Report:
    """Measure a model that answers in one execution."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonize-")))
        inputs = read_inputs(options)
        target = _target(options)
        stack.enter_context(closing(target.server) if target else nullcontext())
        served = target.package.manifest if target is not None else None
        require_expected(options.gates, expected(inputs, served=served))
        if options.exported:
            inputs = replace(inputs, exported=exported_graph(inputs, folder))
        return _measure(inputs, target)


def _target(options: BenchmarkOptions) -> Target | None:
    if options.in_process:
        return None
    package = read_package(options.repository, options.name)
    load_generator = find_perf_analyzer(triton_environment())
    require_same_bundle(package, options.bundle_folder)
    check_process(options.address, package)
    if ClientAccess(**asdict(options.access)).headers("grpc"):
        logger.warning(
            "the load generator has the API key on its command line, where other users of this machine can read it: "
            "use a key for this benchmark alone, and remove it afterwards"
        )
    server = ServerConnection(options.address, options.name, options.access)
    return Target(server=server, package=package, load_generator=load_generator)


def _measure(inputs: BenchmarkInputs, target: Target | None) -> Report:
    watch = MachineWatch()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    energy = find_meter()
    under_load = UnderLoad(target, inputs, energy) if target is not None else None
    watch.begin(under_load.process if under_load is not None else None)
    with loaded(inputs, energy) as in_process:
        ways = [way for one in in_process for way in one.ways]
        options = inputs.options
        everything: list[TimedWay] = [*ways, *(under_load.ways if under_load else [])]
        measure_rounds(everything, inputs.rows.timed, rounds=options.rounds, duration=options.duration)
        environment = watch.end()
        found = findings(inputs, in_process)
    served, samples, rounds = None, found.samples, found.rounds
    if under_load is not None:
        served = under_load.found(found.original)
        samples = samples | under_load.samples()
        rounds = [one | other for one, other in zip(rounds, under_load.rounds(), strict=True)]
    report = Report(
        name=inputs.options.name,
        task=inputs.task.name,
        created=created,
        main_metric=inputs.task.main_metric,
        environment=environment,
        settings=_settings(inputs),
        in_process=found.models,
        served=served,
        rounds=rounds,
        gates=[],
        samples=to_samples(samples),
    )
    for figure, speed in report.speeds():
        logger.info(f"{figure}: {throughput(speed)} rows/s, p50 {speed.p50_ms:.2f} ms, p99 {speed.p99_ms:.2f} ms")
    return report


def _settings(inputs: BenchmarkInputs) -> ReportSettings:
    options, rows, names = inputs.options, inputs.rows, model_inputs(inputs.bundle)
    return ReportSettings(
        rows=len(rows.timed[None]),
        tokens={length_key(length): mean_tokens(inputs.bundle, names, timed) for length, timed in rows.timed.items()},
        labelled_rows=len(rows.labelled),
        rows_sha256=checksum([rows.labelled, rows.references]),
        timed_sha256=timed_checksums(rows),
        duration=options.duration,
        rounds=options.rounds,
        seed=options.seed,
        device=inputs.device,
        max_length=inputs.bundle.max_length,
        test=options.test,
        bundle_created=inputs.bundle.manifest.created.isoformat(),
    )
