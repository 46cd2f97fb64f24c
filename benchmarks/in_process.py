"""The original, ``transformers.pipeline`` and every ONNX variant, each in processes of its own."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import logits
from benchmarks.answers import from_json
from benchmarks.backends import has_tensorrt, weights_file
from benchmarks.energy import EnergyMeter
from benchmarks.inputs import BenchmarkInputs
from benchmarks.jobs import WorkerJob
from benchmarks.machine import MIB
from benchmarks.quality import evaluate, evaluate_pipeline
from benchmarks.report import Arrangement, InProcess, flatten
from benchmarks.speed import Spans, Timing, over_rounds, side_by_side
from benchmarks.workers import Workers, started
from export import graph, optimize
from export.checkpoint import weights_size
from serving.artifact import sha256
from serving.bundle import Bundle
from serving.errors import ArtifactError, SetupError
from serving.machine import cores
from serving.runtime.tasks.base import Arrays

Asked = tuple[int, int | None]
"""Rows per call, and how many tokens each of them has (None: rows as they are)."""

ORIGINAL = "pytorch", "fp32"
OPTIONAL = "tensorrt"
"""What is there may still not take this model: then the others are measured all the same."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Models, their figures of each round, the samples behind their speeds, and the original's answers to the labelled rows."""

    models: list[InProcess]
    rounds: list[dict[str, float]]
    samples: dict[str, Spans]
    original: Arrays


@dataclass(kw_only=True)
class _Model:
    """What the processes of one model have told so far."""

    file: Path
    sha256: str
    device: str
    arrangements: dict[str, Arrangement] = field(default_factory=dict)
    answers: Any = None
    logits: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What is to be loaded, in how many processes, and how it is asked."""

    job: WorkerJob
    processes: int
    asked: tuple[Asked, ...]


@dataclass(frozen=True, kw_only=True)
class Batched:
    """A way of answering: loaded processes, asked ``batch`` rows at a time.

    Args:
        length: tokens of the rows; None: as they are.
        slices: what was measured, by round and by process.
        watts: what the machine drew meanwhile, by round; empty where it does not tell.
    """

    workers: Workers
    batch: int
    length: int | None
    energy: EnergyMeter
    slices: list[list[Spans]] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)

    def measure(self, rows: list[list[str]], seconds: float) -> None:
        """Make the next round's slice."""
        before, begun = self.energy.read(), time.perf_counter()
        self.slices.append(self.workers.measure(rows, self.batch, seconds))
        after = self.energy.read()
        if before is not None and after is not None:  # it answered all the time, the untimed calls at first included
            self.watts.append((after - before) / (time.perf_counter() - begun))

    def timings(self) -> list[Timing]:
        """By round."""
        return [side_by_side(workers, self.batch) for workers in self.slices]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Processes of one job, and the ways of asking them."""

    run: ModelRun
    workers: Workers
    ways: list[Batched]


@contextlib.contextmanager
def loaded(inputs: BenchmarkInputs, energy: EnergyMeter, say: Callable[[str], None]) -> Iterator[list[Loaded]]:
    """Everything that runs without a server, loaded and asleep as long as the block runs.

    Args:
        say: told what is about to be loaded.

    Raises:
        SetupError: a worker failed.
    """
    with contextlib.ExitStack() as stack:
        kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonize-")))
        runs = list(_plan(inputs, kept))
        processes = sum(run.processes for run in runs)
        say(f"loading {processes} processes, one after another; every model answers the {len(inputs.rows.labelled)} labelled rows")
        found = []
        for run in runs:
            try:
                workers = stack.enter_context(started(run.job, run.processes))
            except SetupError as error:
                if run.job.backend != OPTIONAL:
                    raise
                say(f"{run.job.backend} is left out: {error.message}")
                continue
            ways = [Batched(workers=workers, batch=batch, length=length, energy=energy) for batch, length in run.asked]
            found.append(Loaded(run=run, workers=workers, ways=ways))
        yield found


def findings(inputs: BenchmarkInputs, measured: Sequence[Loaded]) -> Findings:
    """End the processes and put together what was measured.

    Raises:
        SetupError: a worker failed.
        ArtifactError: a file that ran is not the one its bundle describes.
    """
    models: dict[tuple[str, str], _Model] = {}
    rounds: list[dict[str, float]] = [{} for _ in range(inputs.rounds)]
    samples: dict[str, Spans] = {}
    for one in measured:
        facts = one.workers.end()
        first, job = facts[0], one.run.job
        key = job.backend, _precision(inputs.bundle, job, first)
        model = models.setdefault(key, _Model(file=Path(first["file"]), sha256=first["sha256"], device=job.device))
        if clash := [name for name in (_name(one.run, way, first["threads"]) for way in one.ways) if name in model.arrangements]:
            raise ArtifactError(
                f"two ways of answering are both {'.'.join(key)}.{clash[0]}", hint="this is a bug: please report it"
            )
        model.answers = first["answers"] or model.answers
        model.logits = model.logits or (Path(job.logits) if job.logits else None)
        for way in one.ways:
            timings = way.timings()
            arrangement = _arrangement(one.run, way, facts, timings)
            model.arrangements[arrangement.name] = arrangement
            figure = f"{'.'.join(key)}.{arrangement.name}"
            for index, (workers, timing) in enumerate(zip(way.slices, timings, strict=True)):
                rounds[index] |= flatten(f"{figure}.", asdict(timing.speed()))
                samples |= {f"{figure}.r{index + 1}.{process}": spans for process, spans in enumerate(workers)}
    original = from_json(inputs.bundle.task, models[ORIGINAL].answers)
    judged = [_judged(key, model, inputs, original, models[ORIGINAL]) for key, model in models.items()]
    return Findings(
        models=judged, rounds=[found | _short_names(judged, found) for found in rounds], samples=samples, original=original
    )


def _short_names(models: Sequence[InProcess], found: dict[str, float]) -> dict[str, float]:
    """A round's figures of whole models, as in :meth:`benchmarks.report.Report.figures`.

    They are always of the same arrangement, the one that is best over all rounds: the best of each round would be luck picked out.
    """
    short = {}
    for model in models:
        short[f"{model.name}.throughput"] = found[f"{model.name}.{model.best}.throughput"]
        for percentile in ("p50_ms", "p90_ms", "p95_ms", "p99_ms"):
            short[f"{model.name}.{percentile}"] = found[f"{model.name}.{model.quickest}.{percentile}"]
    return short


def _plan(inputs: BenchmarkInputs, folder: Path) -> Iterator[ModelRun]:
    """What is to be loaded. ``folder`` takes what the models say of the labelled rows."""
    batched: tuple[Asked, ...] = tuple((batch, None) for batch in dict.fromkeys((1, *inputs.batches)))
    alone_and_together: tuple[Asked, ...] = tuple(dict.fromkeys([batched[0], batched[-1]]))
    by_length: tuple[Asked, ...] = tuple((1, length) for length in inputs.lengths)

    def run(
        backend: str, source: Path, asked: tuple[Asked, ...], *, labelled: bool = True, processes: int = 1, **options: Any
    ) -> ModelRun:
        job = WorkerJob(
            backend=backend,
            source=os.fspath(source),
            bundle=os.fspath(inputs.bundle.folder),
            first=inputs.rows.timed[None][0],
            labelled=inputs.rows.labelled if labelled else [],
            logits=os.fspath(folder / f"{backend}-{source.parent.name}-{options.get('half', False)}.npz") if labelled else None,
            most_rows=max(batch for batch, _ in asked),
            **{"device": inputs.device, **options},
        )
        return ModelRun(job=job, processes=processes, asked=asked)

    yield run("pytorch", inputs.checkpoint, (*batched, *by_length))
    yield run("pytorch", inputs.checkpoint, alone_and_together, half=True)
    if inputs.compiled:
        yield run("compiled", inputs.checkpoint, alone_and_together)
    if inputs.bundle.task.has_pipeline:
        yield run("pipeline", inputs.checkpoint, alone_and_together)
    if inputs.exported is not None:
        yield run("exported", inputs.exported, (batched[0], *by_length), threads=cores() if inputs.device == "cpu" else 1)
    for precision in inputs.precisions:
        file = inputs.bundle.variant(precision).path
        device = "cpu" if precision == "int8" else inputs.device  # CUDA has no kernels for dynamic int8
        if device == "gpu":
            yield run("onnx", file, (*batched, *by_length), threads=1)
            if inputs.exported is not None and precision in tensorrt_precisions(inputs):
                yield run(OPTIONAL, inputs.exported, (*batched, *by_length), threads=1, half=precision == "fp16")
            continue
        for index, (processes, threads) in enumerate(dict.fromkeys([(1, cores()), (1, 1), (cores(), 1)])):
            asked = (*batched, *by_length) if index == 0 else batched[:1]
            yield run("onnx", file, asked, labelled=index == 0, device=device, threads=threads, processes=processes)


def tensorrt_precisions(inputs: BenchmarkInputs) -> list[str]:
    """Precisions in which TensorRT can run the exported graph."""
    usable = inputs.device == "gpu" and has_tensorrt()
    return [precision for precision in inputs.precisions if precision != "int8"] if usable else []


def require_original(bundle: Bundle, checkpoint: Path) -> None:
    """Check that ``checkpoint`` holds the weights that ``bundle`` was exported from.

    Raises:
        ArtifactError: it holds others.
    """
    weights_file(checkpoint)  # there are some
    exported = bundle.manifest.inputs.files
    if any(exported.get(weights.name) != sha256(weights) for weights in checkpoint.glob("*.safetensors")):
        raise ArtifactError(
            f"{bundle.folder} was not exported from {checkpoint}: the weights differ",
            hint="name its original with --checkpoint, or export anew with: tritonize export",
        )


def bundle_precision(bundle: Bundle, sha256: str) -> str:
    """Which variant of the bundle a file is, told by its checksum.

    Raises:
        ArtifactError: none: the file was changed after it was verified.
    """
    for precision, variant in bundle.variants.items():
        if bundle.manifest.files.get(variant.path.relative_to(bundle.folder).as_posix()) == sha256:
            return precision
    raise ArtifactError(
        f"an ONNX file in {bundle.folder} is not the one that was verified: its checksum is not in the manifest",
        hint="write the bundle anew with: tritonize export --force",
    )


def _precision(bundle: Bundle, job: WorkerJob, facts: dict[str, Any]) -> str:
    """What ran: told by the tensors, by the bundle's checksum of the file, or by the file's weights."""
    if job.backend == "exported":
        return graph.precision(Path(facts["file"]))
    told: str = facts["precision"]
    return told or bundle_precision(bundle, facts["sha256"])


def _name(run: ModelRun, way: Batched, threads: int) -> str:
    """Of an arrangement, see :class:`benchmarks.report.Arrangement`."""
    on_cores = f"p{run.processes}t{threads}" if run.job.threads else ""
    rows = f"b{way.batch}" if way.batch > 1 or not on_cores else ""
    return f"{on_cores}{rows}{f'l{way.length}' if way.length else ''}"


def _arrangement(run: ModelRun, way: Batched, facts: list[dict[str, Any]], timings: list[Timing]) -> Arrangement:
    threads = facts[0]["threads"]
    gpu_memory = [fact["gpu_memory_mib"] for fact in facts if fact["gpu_memory_mib"] is not None]
    speed = over_rounds(timings)
    return Arrangement(
        name=_name(run, way, threads),
        processes=run.processes,
        threads=threads,
        batch=way.batch,
        length=way.length,
        speed=speed,
        load_seconds=max(fact["load_seconds"] for fact in facts),
        first_answer_seconds=max(fact["first_answer_seconds"] for fact in facts),
        joules_per_row=mean(way.watts) / speed.throughput if way.watts else None,
        peak_rss_mib=sum(fact["peak_rss_mib"] for fact in facts),
        gpu_memory_mib=sum(gpu_memory) if gpu_memory else None,
    )


def _judged(key: tuple[str, str], model: _Model, inputs: BenchmarkInputs, original: Arrays, first: _Model) -> InProcess:
    rows = inputs.rows
    if isinstance(model.answers, dict):
        difference = None
        if model is not first and model.logits is not None and first.logits is not None:
            difference = logits.largest_difference(model.logits, first.logits)
        answers = from_json(inputs.bundle.task, model.answers)
        quality = evaluate(inputs.bundle.task, rows, answers, None if model is first else original, logit_difference=difference)
    else:
        quality = evaluate_pipeline(inputs.bundle.task, rows, model.answers, original)
    is_onnx = model.file.suffix == ".onnx"
    return InProcess(
        kind=key[0],
        precision=key[1],
        device=model.device,
        file=model.file.name,
        sha256=model.sha256,
        size_mib=(graph.size(model.file) if is_onnx else weights_size(model.file.parent)) / MIB,
        fused_operators=optimize.operators(model.file) if is_onnx else None,
        arrangements=model.arrangements,
        quality=quality,
    )
