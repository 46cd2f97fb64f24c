"""The original, ``transformers.pipeline`` and every ONNX variant, each in processes of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.quality import judge
from benchmarks.report import Arrangement, InProcess
from benchmarks.runners import Answers, Job, weights_file
from benchmarks.speed import Spans, as_spans, workers_speed
from benchmarks.study import Study
from benchmarks.workers import run_workers
from serving.artifact import sha256
from serving.bundle import Bundle
from serving.errors import ArtifactError
from serving.machine import cores

TORCH_BATCHES = [1, 32]
"""Rows per call: alone, as somebody types them, and together, where PyTorch is at its best."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Models, the samples behind their speeds by figure name, and the original's answers to the labelled rows."""

    models: list[InProcess]
    samples: dict[str, Spans]
    original: Answers


@dataclass(kw_only=True)
class _Model:
    """What the jobs of one model have found so far."""

    file: str
    sha256: str
    device: str
    arrangements: dict[str, Arrangement] = field(default_factory=dict)
    answers: Answers = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Run:
    job: Job
    processes: int


def measure(study: Study, say: Callable[[str], None]) -> Findings:
    """Measure everything that runs without a server.

    Args:
        say: told one line per arrangement.

    Raises:
        SetupError: a worker failed.
        ArtifactError: a file that ran is not the one its bundle describes.
    """
    models: dict[tuple[str, str], _Model] = {}
    samples: dict[str, Spans] = {}
    for run in _plan(study):
        results = run_workers(run.job, run.processes)
        first = results[0]
        key = run.job.backend, first["precision"] or bundle_precision(study.bundle, first["sha256"])
        model = models.setdefault(key, _Model(file=Path(first["file"]).name, sha256=first["sha256"], device=run.job.device))
        model.answers = first["answers"] or model.answers
        for index in range(len(run.job.batches)):
            spans = [as_spans(result["timings"][index]["spans"]) for result in results]
            arrangement = _arrangement(run, index, results, spans)
            figure = f"{'.'.join(key)}.{arrangement.name}"
            model.arrangements[arrangement.name] = arrangement
            samples |= {f"{figure}.{worker}": span for worker, span in enumerate(spans)}
            speed = arrangement.speed
            say(f"{figure}: {speed.throughput:.0f} rows/s, p50 {speed.p50_ms:.2f} ms, p99 {speed.p99_ms:.2f} ms")
    original = models["pytorch", "fp32"].answers
    judged = [_judged(key, model, study, original) for key, model in models.items()]
    return Findings(models=judged, samples=samples, original=original)


def _plan(study: Study) -> Iterator[_Run]:
    def run(backend: str, source: Path, *, labelled: bool, processes: int = 1, device: str = study.device, **options: Any) -> _Run:
        job = Job(
            backend=backend,
            source=os.fspath(source),
            bundle=os.fspath(study.bundle.folder),
            device=device,
            duration=study.duration,
            rows=study.rows.timed,
            labelled=study.rows.labelled if labelled else [],
            **options,
        )
        return _Run(job=job, processes=processes)

    yield run("pytorch", study.checkpoint, batches=TORCH_BATCHES, labelled=True)
    yield run("pytorch", study.checkpoint, batches=TORCH_BATCHES, labelled=True, half=True)
    yield run("pipeline", study.checkpoint, batches=TORCH_BATCHES, labelled=True)
    for precision in study.precisions:
        file = study.bundle.variant(precision).path
        device = "cpu" if precision == "int8" else study.device  # CUDA has no kernels for dynamic int8
        if device == "gpu":
            yield run("onnx", file, batches=TORCH_BATCHES, labelled=True, threads=1)
            continue
        for index, (processes, threads) in enumerate(dict.fromkeys([(1, cores()), (1, 1), (cores(), 1)])):
            yield run("onnx", file, batches=[1], labelled=index == 0, device=device, threads=threads, processes=processes)


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


def _arrangement(run: _Run, index: int, results: list[dict[str, Any]], spans: list[Spans]) -> Arrangement:
    batch, threads = run.job.batches[index], results[0]["threads"]
    on_its_own = f"p{run.processes}t{threads}" + (f"b{batch}" if batch > 1 else "")
    gpu_memory = [result["gpu_memory_mib"] for result in results if result["gpu_memory_mib"] is not None]
    return Arrangement(
        name=on_its_own if run.job.backend == "onnx" else f"b{batch}",
        processes=run.processes,
        threads=threads,
        batch=batch,
        speed=workers_speed(spans, [result["timings"][index]["rows"] for result in results]),
        load_seconds=max(result["load_seconds"] for result in results),
        peak_rss_mib=sum(result["peak_rss_mib"] for result in results),
        gpu_memory_mib=sum(gpu_memory) if gpu_memory else None,
    )


def _judged(key: tuple[str, str], model: _Model, study: Study, original: Answers) -> InProcess:
    quality = judge(study.bundle.task, study.rows.references, model.answers, original)
    return InProcess(
        kind=key[0],
        precision=key[1],
        device=model.device,
        file=model.file,
        sha256=model.sha256,
        arrangements=model.arrangements,
        quality=quality,
    )
