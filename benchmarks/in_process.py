"""The original, ``transformers.pipeline`` and every ONNX variant, each in processes of its own."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean

from benchmarks import logits
from benchmarks.energy import EnergyMeter
from benchmarks.inputs import BenchmarkInputs
from benchmarks.jobs import WorkerFacts, WorkerJob
from benchmarks.measurements import Arrangement, InProcess
from benchmarks.model_runs import OPTIONAL_BACKEND, ModelRun, planned_runs
from benchmarks.processes import MIB
from benchmarks.quality import evaluate, evaluate_pipeline
from benchmarks.report import flatten
from benchmarks.speed import PERCENTILES, SliceTiming, Spans, over_rounds, side_by_side
from benchmarks.workers import Workers, started
from export import graph, optimize
from export.checkpoint import weights_size
from serving.bundle import Bundle
from serving.errors import ArtifactError, SetupError
from serving.reporting import logger, plural
from serving.runtime.types import Arrays

ORIGINAL = "pytorch.fp32"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was measured in process.

    Attributes:
        samples: Spans behind their speeds, by the names of :data:`benchmarks.samples.Samples`.
    """

    models: list[InProcess]
    rounds: list[dict[str, float]]
    samples: dict[str, Spans]
    original: Arrays


@dataclass(frozen=True, kw_only=True)
class Batched:
    """A way of answering: loaded processes, asked ``batch`` rows at a time.

    Attributes:
        length: Tokens of the rows; None: as they are.
        slices: Spans that were measured, by round and by process.
        watts: Power of the machine meanwhile, by round; empty without counters.
    """

    workers: Workers
    batch: int
    length: int | None
    energy: EnergyMeter
    slices: list[list[Spans]] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)

    def measure(self, rows: list[list[str]], seconds: float) -> None:
        """Measure the next round's slice."""
        before, begun = self.energy.read(), time.perf_counter()
        self.slices.append(self.workers.measure(rows, self.batch, seconds))
        after = self.energy.read()
        if before is not None and after is not None:  # the model works all the time, in the untimed calls at first too
            self.watts.append((after - before) / (time.perf_counter() - begun))


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Processes of one run, and the calls they are timed with."""

    run: ModelRun
    workers: Workers
    ways: list[Batched]


_Ended = tuple[Loaded, list[WorkerFacts]]


@contextlib.contextmanager
def loaded(inputs: BenchmarkInputs, energy: EnergyMeter) -> Iterator[list[Loaded]]:
    """Load every model that runs in process; all stay loaded and asleep as long as the block runs.

    Raises:
        SetupError: A worker failed.
    """
    with contextlib.ExitStack() as stack:
        outputs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonize-")))
        runs = list(planned_runs(inputs, outputs))
        processes = sum(run.processes for run in runs)
        rows = len(inputs.rows.labelled)
        logger.info(
            f"loading {processes} {plural(processes, 'process', 'processes')}, one after another; "
            f"every model answers the {rows} labelled rows"
        )
        found = []
        for run in runs:
            try:
                workers = stack.enter_context(started(run.job, run.processes))
            except SetupError as error:
                if run.job.backend != OPTIONAL_BACKEND:
                    raise
                logger.warning(f"{run.job.backend} is left out: {error.message}")
                continue
            ways = [Batched(workers=workers, batch=batch, length=length, energy=energy) for batch, length in run.calls]
            found.append(Loaded(run=run, workers=workers, ways=ways))
        yield found


def findings(inputs: BenchmarkInputs, measured: Sequence[Loaded]) -> Findings:
    """End the processes and collect what was measured.

    Raises:
        SetupError: A worker failed.
        ArtifactError: A file that ran is not the one its bundle describes.
    """
    ended: dict[str, list[_Ended]] = {}
    for one in measured:
        facts = one.workers.end()
        ended.setdefault(f"{one.run.job.backend}.{_precision(inputs.bundle, one.run.job, facts[0])}", []).append((one, facts))
    rounds: list[dict[str, float]] = [{} for _ in range(inputs.options.rounds)]
    samples: dict[str, Spans] = {}
    models = []
    for name, parts in ended.items():
        arrangements: dict[str, Arrangement] = {}
        for one, facts in parts:
            for way in one.ways:
                timings = [side_by_side(workers, way.batch) for workers in way.slices]
                arrangement = _arrangement(one.run, way, facts, timings)
                arrangements[arrangement.name] = arrangement
                figure = f"{name}.{arrangement.name}"
                for index, (workers, timing) in enumerate(zip(way.slices, timings, strict=True)):
                    rounds[index] |= flatten(f"{figure}.", asdict(timing.speed()))
                    samples |= {f"{figure}.r{index + 1}.{process}": spans for process, spans in enumerate(workers)}
        models.append(_model(name, parts[0], ended[ORIGINAL][0], arrangements, inputs))
    rounds = [found | _short_names(models, found) for found in rounds]
    return Findings(models=models, rounds=rounds, samples=samples, original=ended[ORIGINAL][0][1][0].answers)


def _short_names(models: Sequence[InProcess], found: dict[str, float]) -> dict[str, float]:
    """A round's figures of whole models, as in :meth:`benchmarks.report.Report.figures`.

    They are those of the arrangement that is best over all rounds: the best of each round would be selected by noise.
    """
    figures = {
        model.name: [("throughput", model.best.name), *((key, model.quickest.name) for key in PERCENTILES)] for model in models
    }
    return {f"{name}.{key}": found[f"{name}.{one}.{key}"] for name, keys in figures.items() for key, one in keys}


def bundle_precision(bundle: Bundle, sha256: str) -> str:
    """Find the precision of a bundle's file by its checksum.

    Raises:
        ArtifactError: The file was changed after it was verified.
    """
    for precision, variant in bundle.variants.items():
        if bundle.manifest.files.get(variant.path.relative_to(bundle.folder).as_posix()) == sha256:
            return precision
    raise ArtifactError(
        f"an ONNX file in {bundle.folder} is not the one that was verified: its checksum is not in the manifest",
        hint="write the bundle anew with: tritonize export --force",
    )


def _precision(bundle: Bundle, job: WorkerJob, facts: WorkerFacts) -> str:
    """The precision that ran: read from the tensors, the bundle's checksum of the file, or the file's weights."""
    if job.backend == "exported":
        return graph.precision(facts.file)
    return facts.precision or bundle_precision(bundle, facts.sha256)


def _arrangement(run: ModelRun, way: Batched, facts: list[WorkerFacts], timings: list[SliceTiming]) -> Arrangement:
    gpu_memory = [fact.gpu_memory_mib for fact in facts if fact.gpu_memory_mib is not None]
    speed = over_rounds(timings)
    return Arrangement(
        name=run.arrangement(way.batch, way.length),
        processes=run.processes,
        threads=facts[0].threads,
        batch=way.batch,
        length=way.length,
        speed=speed,
        load_seconds=max(fact.load_seconds for fact in facts),
        first_answer_seconds=max(fact.first_answer_seconds for fact in facts),
        joules_per_row=mean(way.watts) / speed.throughput if way.watts else None,
        peak_rss_mib=sum(fact.peak_rss_mib for fact in facts),
        gpu_memory_mib=sum(gpu_memory) if gpu_memory else None,
    )


def _model(name: str, ended: _Ended, original: _Ended, arrangements: dict[str, Arrangement], inputs: BenchmarkInputs) -> InProcess:
    """A model with its quality, from its first run, which answered the labelled rows."""
    (first, (facts, *_)), (reference, (theirs, *_)) = ended, original
    task, file = inputs.task, facts.file
    if first is reference:
        quality = evaluate(task, inputs.rows, facts.answers, None)
    elif isinstance(facts.answers, dict):
        difference = logits.largest_difference(first.run.job.logits, reference.run.job.logits)
        quality = evaluate(task, inputs.rows, facts.answers, theirs.answers, logit_difference=difference)
    else:
        quality = evaluate_pipeline(task, inputs.rows, facts.answers, theirs.answers)
    is_onnx = file.suffix == ".onnx"
    kind, _, precision = name.partition(".")
    return InProcess(
        kind=kind,
        precision=precision,
        device=first.run.job.device,
        file=file.name,
        sha256=facts.sha256,
        size_mib=(graph.size(file) if is_onnx else weights_size(file.parent)) / MIB,
        fused_operators=optimize.operators(file) if is_onnx else None,
        arrangements=arrangements,
        quality=quality,
    )
