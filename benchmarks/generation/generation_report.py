"""Measure a model that generates, and collect the report."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.expected import require_expected
from benchmarks.generation.conversions import convert_for_ctranslate2, exported_by_optimum
from benchmarks.generation.generation_expected import expected_generation
from benchmarks.generation.generation_inputs import GenerationInputs, read_generation_inputs
from benchmarks.generation.generation_jobs import greedy
from benchmarks.generation.generation_models import GeneratedModels, collected
from benchmarks.generation.generation_quality import compare_answers, with_bundle_figures
from benchmarks.generation.generation_runs import CTRANSLATE2, GenerationRun, has_ctranslate2, planned_generation_runs
from benchmarks.generation.generation_ways import ServedGenerator, Streams, generating, samples_of, streaming, to_load
from benchmarks.generation.prompts import Prompts
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
from export import graph
from export.generation.decoder_records import METRIC
from serving.bundle import load_bundle
from serving.reporting import logger


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
        return _measured(inputs, _converted(inputs, runs, folder), served)


def _connected(options: BenchmarkOptions, package: ServedPackage) -> ServedGenerator:
    process = check_process(options.address, package)
    return ServedGenerator(
        connection=ServerConnection(options.address, options.name, options.access), package=package, process=process
    )


def _converted(inputs: GenerationInputs, runs: list[GenerationRun], folder: Path) -> list[GenerationRun]:
    """Write what the peers run, and return the runs without the peers that cannot run this checkpoint."""
    left_out = set()
    if inputs.exported is not None and not exported_by_optimum(inputs.checkpoint, inputs.bundle.task.name, inputs.exported):
        left_out.add("exported")
    if has_ctranslate2() and not convert_for_ctranslate2(inputs.checkpoint, folder):
        left_out.add(CTRANSLATE2)
    return [run for run in runs if run.job.backend not in left_out]


def _measured(inputs: GenerationInputs, runs: list[GenerationRun], served: ServedGenerator | None) -> Report:
    options = inputs.options
    watch = MachineWatch()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    prompts = Prompts(inputs.bundle, inputs.engine.capacity, greedy(options.new_tokens))
    with ExitStack() as stack:
        streams = None if served is None else stack.enter_context(streaming(inputs, served))
        watch.begin(None if served is None else served.process)
        processes = stack.enter_context(generating(runs, len(inputs.rows.labelled)))
        ways = [way for one in processes for way in one.ways] + ([] if streams is None else streams.ways)
        measure_rounds(ways, inputs.rows.timed, rounds=options.rounds, duration=options.duration)
        environment = watch.end()
        found = collected(inputs, processes, prompts)
        server = None if streams is None or served is None else _served(inputs, served, streams, found, prompts)
    report = Report(
        name=options.name,
        task=inputs.bundle.task.name,
        created=created,
        main_metric=METRIC,
        environment=environment,
        settings=_settings(inputs),
        in_process=found.models,
        served=server,
        rounds=[own | others for own, others in zip(found.rounds, _rounds(server, streams, options.rounds), strict=True)],
        gates=[],
        samples=to_answer_samples(found.samples | _samples(server, streams)),
    )
    for name, one in report.measured():
        if (tokens := one.tokens) is not None:
            speed = f"{tokens.tokens_per_second:.4g} tokens/s, first token p50 {tokens.ttft_p50_ms:.4g} ms"
            logger.info(f"{name}: {speed}, between tokens p50 {tokens.itl_p50_ms:.3g} ms, p99 {tokens.itl_p99_ms:.3g} ms")
    return report


def _served(
    inputs: GenerationInputs, served: ServedGenerator, streams: Streams, found: GeneratedModels, prompts: Prompts
) -> Served:
    """Collect what was measured of the server."""
    facts = [workers.end()[0] for workers in streams.workers]
    texts = [row[0] for row in inputs.rows.labelled]
    package, memory = served.package, streams.memory
    quality = compare_answers(texts, facts[0].answers, found.original, prompts.decode)
    return Served(
        precision=package.precision,
        package=package_settings(package),
        sha256=package.sha256,
        server=served.connection.version,
        loads=[to_load(mode, way) for mode, way in zip(streams.loads, streams.ways, strict=True)],
        quality=with_bundle_figures(quality, inputs.bundle, package.precision),
        load_seconds=load_seconds(served.connection.address, served.process),
        peak_rss_mib=memory.peak_rss_mib if memory else None,
        pss_mib=memory.pss_mib if memory else None,
        gpu_memory_mib=None,
        size_mib=graph.size(package.file) / MIB,
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
    options, rows = inputs.options, inputs.rows
    return ReportSettings(
        rows=len(rows.timed[None]),
        tokens={length_key(length): mean for length, mean in inputs.tokens.items()},
        labelled_rows=len(rows.labelled),
        rows_sha256=checksum([rows.labelled, options.new_tokens]),
        timed_sha256=timed_checksums(rows),
        duration=options.duration,
        rounds=options.rounds,
        seed=options.seed,
        device="cpu",
        max_length=inputs.engine.capacity,
        test=options.test,
        bundle_created=inputs.bundle.manifest.created.isoformat(),
        new_tokens=options.new_tokens,
    )
