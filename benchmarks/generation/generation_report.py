"""Measure a model that generates, and collect the report."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.expected import require_expected
from benchmarks.generation.conversions import CTRANSLATE2, convert_for_ctranslate2, export_by_optimum, has_ctranslate2
from benchmarks.generation.ctranslate2_options import absent_options
from benchmarks.generation.generation_expected import expected_generation
from benchmarks.generation.generation_inputs import GenerationInputs, read_generation_inputs
from benchmarks.generation.generation_models import GeneratedModels, collected, graphs_size
from benchmarks.generation.generation_quality import AnswerComparison, answer_comparison
from benchmarks.generation.generation_runs import CONTINUOUS, GenerationRun, planned_generation_runs
from benchmarks.generation.generation_ways import ServedGenerator, Streams, generating, samples_of, streaming, to_load
from benchmarks.machine_watch import MachineWatch
from benchmarks.measurements import Served
from benchmarks.processes import MIB
from benchmarks.report import Report, ReportSettings, length_key
from benchmarks.rounds import measure_rounds
from benchmarks.row_checksums import checksum, timed_checksums
from benchmarks.samples import to_answer_samples
from benchmarks.served import ServerConnection, load_seconds
from benchmarks.served_package import ServedPackage, check_process, package_settings, read_package, require_same_bundle
from benchmarks.token_speed import TokenTimes
from serving.bundle import load_bundle
from serving.reporting import logger


@dataclass(frozen=True)
class Remarks:
    """What a report says about ways that were left out, or that differ from the others."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Take a remark, and show it."""
        logger.warning(line)
        self.lines.append(line)


def generation_report(options: BenchmarkOptions) -> Report:
    """Measure a model that generates: the original, peers, every variant in process, and the server, in turns.

    Raises:
        TritonizeError: Something prevents the measurement; what can be known in advance is checked first.
    """
    bundle = load_bundle(options.bundle_folder)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonize-")))
        package = None if options.in_process else read_package(options.repository, options.name)
        if package is not None:
            require_same_bundle(package, options.bundle_folder)
        inputs = read_generation_inputs(options, bundle, package)
        served = None if package is None else _connected(options, package)
        stack.enter_context(closing(served.connection) if served is not None else nullcontext())
        if options.exported:
            inputs = replace(inputs, exported=folder / "exported")
        runs = list(planned_generation_runs(inputs, folder))
        require_expected(options.gates, expected_generation(inputs, runs, served=None if package is None else package.precision))
        remarks = Remarks()
        return _measured(inputs, _converted(inputs, runs, folder, remarks), served, remarks)


def _connected(options: BenchmarkOptions, package: ServedPackage) -> ServedGenerator:
    process = check_process(options.address, package)
    return ServedGenerator(
        connection=ServerConnection(options.address, options.name, options.access), package=package, process=process
    )


def _converted(inputs: GenerationInputs, runs: list[GenerationRun], folder: Path, remarks: Remarks) -> list[GenerationRun]:
    """Write what the peers run, and return the runs without the peers that cannot run this checkpoint."""
    left_out = {}
    if inputs.exported is not None:
        task = inputs.bundle.task.name if inputs.bundle.generation_task.streams else "text2text-generation"
        left_out["exported"] = export_by_optimum(inputs.checkpoint, task, inputs.exported)
    left_out[CTRANSLATE2] = (
        convert_for_ctranslate2(inputs.checkpoint, folder) if has_ctranslate2() else "it is not installed in this environment"
    )
    for name, reason in left_out.items():
        if reason:
            remarks.add(f"{name} is left out: {reason}")
    absent = [] if left_out[CTRANSLATE2] else absent_options(inputs.subject.generation_options)
    if absent:
        remarks.add(f"{CTRANSLATE2} generates without options of this model that it does not have: {', '.join(absent)}")
    return [run for run in runs if not left_out.get(run.job.backend)]


def _measured(inputs: GenerationInputs, runs: list[GenerationRun], served: ServedGenerator | None, remarks: Remarks) -> Report:
    options = inputs.options
    watch = MachineWatch()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    comparison = answer_comparison(inputs)
    with ExitStack() as stack:
        streams = None if served is None else stack.enter_context(streaming(inputs, served))
        watch.begin(None if served is None else served.process)
        processes = stack.enter_context(generating(runs, len(inputs.rows.labelled), inputs.whole_tokens, remarks.add))
        ways = [way for one in processes for way in one.ways] + ([] if streams is None else streams.ways)
        measure_rounds(ways, inputs.rows.timed, rounds=options.rounds, duration=options.duration)
        environment = watch.end()
        found = collected(inputs, processes, comparison)
        server = None if streams is None or served is None else _served(served, streams, found, comparison)
    report = Report(
        name=options.name,
        task=inputs.bundle.task.name,
        created=created,
        main_metric=inputs.bundle.manifest.main_metric,
        environment=environment,
        settings=_settings(inputs),
        in_process=found.models,
        served=server,
        rounds=[own | others for own, others in zip(found.rounds, _rounds(server, streams, options.rounds), strict=True)],
        gates=[],
        remarks=remarks.lines,
        samples=to_answer_samples(found.samples | _samples(server, streams)),
    )
    _log(report)
    return report


def _log(report: Report) -> None:
    """Show the speed of each way."""
    for name, one in report.measured():
        if (tokens := one.tokens) is None:
            continue
        waits = f"answer p50 {one.speed.p50_ms:.4g} ms, p99 {one.speed.p99_ms:.4g} ms"
        if tokens.ttft_p50_ms is not None:
            between = f"between tokens p50 {tokens.itl_p50_ms:.3g} ms, p99 {tokens.itl_p99_ms:.3g} ms"
            waits = f"first token p50 {tokens.ttft_p50_ms:.4g} ms, {between}"
        logger.info(f"{name}: {tokens.tokens_per_second:.4g} tokens/s, {waits}")


def _served(served: ServedGenerator, streams: Streams, found: GeneratedModels, comparison: AnswerComparison) -> Served:
    """Collect what was measured of the server."""
    facts = [workers.end()[0] for workers in streams.workers]
    package, memory = served.package, streams.memory
    return Served(
        precision=package.precision,
        package=package_settings(package),
        sha256=package.sha256,
        server=served.connection.version,
        loads=[to_load(mode, way) for mode, way in zip(streams.loads, streams.ways, strict=True)],
        quality=comparison.quality(f"{CONTINUOUS}.{package.precision}", facts[0].answers, found.original),
        load_seconds=load_seconds(served.connection.address, served.process),
        peak_rss_mib=memory.peak_rss_mib if memory else None,
        pss_mib=memory.pss_mib if memory else None,
        gpu_memory_mib=None,
        size_mib=graphs_size(package.file) / MIB,
    )


def _rounds(served: Served | None, streams: Streams | None, rounds: int) -> list[dict[str, float]]:
    """The server's figures of each round."""
    found: list[dict[str, float]] = [{} for _ in range(rounds)]
    if served is not None and streams is not None:
        for way in streams.ways:
            for one, own in zip(found, way.rounds(), strict=True):
                one |= {f"{served.name}.{way.name}.{key}": value for key, value in own.items()}
    return found


def _samples(served: Served | None, streams: Streams | None) -> dict[str, TokenTimes]:
    """The times of the tokens that the server sent."""
    if served is None or streams is None:
        return {}
    return {key: times for way in streams.ways for key, times in samples_of(served.name, way).items()}


def _settings(inputs: GenerationInputs) -> ReportSettings:
    options, rows, subject = inputs.options, inputs.rows, inputs.subject
    return ReportSettings(
        rows=len(rows.timed[None]),
        tokens={length_key(length): mean for length, mean in inputs.tokens.items()},
        labelled_rows=len(rows.labelled),
        rows_sha256=checksum([rows.labelled, rows.references] if rows.references else [rows.labelled, options.new_tokens]),
        timed_sha256=timed_checksums(rows),
        duration=options.duration,
        rounds=options.rounds,
        seed=options.seed,
        device="cpu",
        max_length=subject.engine.capacity if inputs.whole_tokens is None else subject.bundle.max_length,
        test=options.test,
        bundle_created=inputs.bundle.manifest.created.isoformat(),
        new_tokens=options.new_tokens,
        num_beams=None if inputs.whole_tokens is None else subject.generation_options.num_beams,
    )
