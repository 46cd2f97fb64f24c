"""The original, ``transformers.pipeline`` and every ONNX variant, each in processes of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.answers import from_json
from benchmarks.quality import judge, judge_pipeline
from benchmarks.report import Arrangement, InProcess, flatten
from benchmarks.runners import Job, weights_file
from benchmarks.speed import Spans, Timing, over_rounds, side_by_side
from benchmarks.study import Study
from benchmarks.workers import Workers, started
from serving.artifact import sha256
from serving.bundle import Bundle
from serving.errors import ArtifactError
from serving.machine import cores
from serving.runtime.tasks.base import Arrays

TORCH_BATCHES = (1, 32)
"""Rows per call: alone, as somebody types them, and together, where PyTorch is at its best."""


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

    file: str
    sha256: str
    device: str
    arrangements: dict[str, Arrangement] = field(default_factory=dict)
    answers: Any = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is to be loaded, in how many processes, and the batches it is asked in."""

    job: Job
    processes: int
    batches: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Batched:
    """A way of answering: loaded processes, asked ``batch`` rows at a time.

    Args:
        slices: what was measured, by round and by process.
    """

    workers: Workers
    batch: int
    slices: list[list[Spans]] = field(default_factory=list)

    def measure(self, rows: list[list[str]], seconds: float) -> None:
        """Make the next round's slice."""
        self.slices.append(self.workers.measure(rows, self.batch, seconds))

    def timings(self) -> list[Timing]:
        """By round."""
        return [side_by_side(workers, self.batch) for workers in self.slices]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Processes of one job, and the ways of asking them."""

    run: Run
    workers: Workers
    ways: list[Batched]


@contextlib.contextmanager
def loaded(study: Study, say: Callable[[str], None]) -> Iterator[list[Loaded]]:
    """Everything that runs without a server, loaded and asleep as long as the block runs.

    Args:
        say: told what is about to be loaded.

    Raises:
        SetupError: a worker failed.
    """
    runs = list(_plan(study))
    processes = sum(run.processes for run in runs)
    say(f"loading {processes} processes, one after another; every model answers the {len(study.rows.labelled)} labelled rows")
    with contextlib.ExitStack() as stack:
        found = []
        for run in runs:
            workers = stack.enter_context(started(run.job, run.processes))
            found.append(Loaded(run=run, workers=workers, ways=[Batched(workers=workers, batch=batch) for batch in run.batches]))
        yield found


def findings(study: Study, measured: Sequence[Loaded]) -> Findings:
    """End the processes and put together what was measured.

    Raises:
        SetupError: a worker failed.
        ArtifactError: a file that ran is not the one its bundle describes.
    """
    models: dict[tuple[str, str], _Model] = {}
    rounds: list[dict[str, float]] = [{} for _ in range(study.rounds)]
    samples: dict[str, Spans] = {}
    for one in measured:
        facts = one.workers.end()
        first, job = facts[0], one.run.job
        key = job.backend, first["precision"] or bundle_precision(study.bundle, first["sha256"])
        model = models.setdefault(key, _Model(file=Path(first["file"]).name, sha256=first["sha256"], device=job.device))
        model.answers = first["answers"] or model.answers
        for way in one.ways:
            timings = way.timings()
            arrangement = _arrangement(one.run, way.batch, facts, timings)
            model.arrangements[arrangement.name] = arrangement
            figure = f"{'.'.join(key)}.{arrangement.name}"
            for index, (workers, timing) in enumerate(zip(way.slices, timings, strict=True)):
                rounds[index] |= flatten(f"{figure}.", asdict(timing.speed()))
                samples |= {f"{figure}.r{index + 1}.{process}": spans for process, spans in enumerate(workers)}
    original = from_json(study.bundle.task, models["pytorch", "fp32"].answers)
    judged = [_judged(key, model, study, original) for key, model in models.items()]
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


def _plan(study: Study) -> Iterator[Run]:
    def run(
        backend: str,
        source: Path,
        *,
        batches: tuple[int, ...] = TORCH_BATCHES,
        labelled: bool = True,
        processes: int = 1,
        device: str = study.device,
        **options: Any,
    ) -> Run:
        job = Job(
            backend=backend,
            source=os.fspath(source),
            bundle=os.fspath(study.bundle.folder),
            device=device,
            first=study.rows.timed[0],
            labelled=study.rows.labelled if labelled else [],
            **options,
        )
        return Run(job=job, processes=processes, batches=batches)

    yield run("pytorch", study.checkpoint)
    yield run("pytorch", study.checkpoint, half=True)
    if study.bundle.task.has_pipeline:
        yield run("pipeline", study.checkpoint)
    for precision in study.precisions:
        file = study.bundle.variant(precision).path
        device = "cpu" if precision == "int8" else study.device  # CUDA has no kernels for dynamic int8
        if device == "gpu":
            yield run("onnx", file, threads=1)
            continue
        for index, (processes, threads) in enumerate(dict.fromkeys([(1, cores()), (1, 1), (cores(), 1)])):
            yield run("onnx", file, batches=(1,), labelled=index == 0, device=device, threads=threads, processes=processes)


def require_original(bundle: Bundle, checkpoint: Path) -> None:
    """Check that ``checkpoint`` holds the weights that ``bundle`` was exported from.

    Raises:
        ArtifactError: it holds others.
    """
    weights_file(checkpoint)  # there are some
    exported = bundle.manifest["inputs"]["files"]
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
        if bundle.manifest["files"].get(variant.path.relative_to(bundle.folder).as_posix()) == sha256:
            return precision
    raise ArtifactError(
        f"an ONNX file in {bundle.folder} is not the one that was verified: its checksum is not in the manifest",
        hint="write the bundle anew with: tritonize export --force",
    )


def _arrangement(run: Run, batch: int, facts: list[dict[str, Any]], timings: list[Timing]) -> Arrangement:
    threads = facts[0]["threads"]
    on_its_own = f"p{run.processes}t{threads}" + (f"b{batch}" if batch > 1 else "")
    gpu_memory = [fact["gpu_memory_mib"] for fact in facts if fact["gpu_memory_mib"] is not None]
    return Arrangement(
        name=on_its_own if run.job.backend == "onnx" else f"b{batch}",
        processes=run.processes,
        threads=threads,
        batch=batch,
        speed=over_rounds(timings),
        load_seconds=max(fact["load_seconds"] for fact in facts),
        peak_rss_mib=sum(fact["peak_rss_mib"] for fact in facts),
        gpu_memory_mib=sum(gpu_memory) if gpu_memory else None,
    )


def _judged(key: tuple[str, str], model: _Model, study: Study, original: Arrays) -> InProcess:
    task, references = study.bundle.task, study.rows.references
    if isinstance(model.answers, dict):
        quality = judge(task, references, from_json(task, model.answers), original)
    else:
        quality = judge_pipeline(task, model.answers, original, study.rows.labelled)
    return InProcess(
        kind=key[0],
        precision=key[1],
        device=model.device,
        file=model.file,
        sha256=model.sha256,
        arrangements=model.arrangements,
        quality=quality,
    )
