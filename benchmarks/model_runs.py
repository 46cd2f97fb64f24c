"""The runs of a benchmark: which models run in process, in which arrangements, and how the server is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.backends import has_tensorrt
from benchmarks.inputs import BenchmarkInputs
from benchmarks.jobs import WorkerJob
from benchmarks.measurements import LoadMode
from serving.machine import cores
from serving.options import CPU_PRECISIONS

Call = tuple[int, int | None]
"""Rows per call, and tokens of each row; None for rows as they are."""

CLIENTS = (1, 4, 16, 64)
"""Default clients of the closed loops."""
OPTIONAL_BACKEND = "tensorrt"
"""A backend that is installed may still not support this model: then the others are measured all the same."""


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """Processes that load the same model, and the calls they are timed with."""

    job: WorkerJob
    precision: str
    processes: int
    calls: tuple[Call, ...]

    @property
    def model(self) -> str:
        """Name of the model that gates use, if the planned precision runs."""
        return f"{self.job.backend}.{self.precision}"

    def arrangement(self, batch: int, length: int | None) -> str:
        """Name an arrangement, see :class:`benchmarks.measurements.Arrangement`."""
        on_cores = f"p{self.processes}t{self.job.threads}" if self.job.threads else ""
        rows = f"b{batch}" if batch > 1 or not on_cores else ""
        return f"{on_cores}{rows}{f'l{length}' if length else ''}"


def planned_runs(inputs: BenchmarkInputs, folder: Path) -> Iterator[ModelRun]:
    """Plan the models in process, the original first; outputs for the labelled rows go to ``folder``."""
    checkpoint, device = inputs.checkpoint, inputs.device
    batches: tuple[Call, ...] = tuple((batch, None) for batch in sorted({1, *inputs.options.batches}))
    smallest_and_largest = tuple(dict.fromkeys([batches[0], batches[-1]]))
    by_length: tuple[Call, ...] = tuple((1, length) for length in inputs.lengths)
    everything = (*batches, *by_length)

    def run(backend: str, source: Path, precision: str, calls: tuple[Call, ...], *, processes: int = 1, **job: Any) -> ModelRun:
        common: dict[str, Any] = {
            "backend": backend,
            "source": source,
            "bundle": inputs.bundle.folder,
            "device": device,
            "max_length": inputs.bundle.max_length,
            "first": inputs.rows.timed[None][0],
            "labelled": inputs.rows.labelled,
            "logits": folder / f"{backend}-{source.parent.name}-{job.get('half', False)}.npz",
            "most_rows": max(batch for batch, _ in calls),
        }
        return ModelRun(job=WorkerJob(**common | job), precision=precision, processes=processes, calls=calls)

    yield run("pytorch", checkpoint, "fp32", everything)
    yield run("pytorch", checkpoint, "fp16" if device == "gpu" else "bf16", smallest_and_largest, half=True)
    if inputs.options.compiled:
        yield run("compiled", checkpoint, "fp32", smallest_and_largest)
    if inputs.task.has_pipeline:
        yield run("pipeline", checkpoint, "fp32", smallest_and_largest)
    if inputs.exported is not None:
        threads = cores() if device == "cpu" else 1
        yield run("exported", inputs.exported, "fp32", (batches[0], *by_length), threads=threads)
    for precision in inputs.precisions:
        file = inputs.bundle.variant(precision).path
        if device == "gpu" and precision not in CPU_PRECISIONS:  # CUDA has no kernels for dynamic int8
            yield run("onnx", file, precision, everything, threads=1)
            if inputs.exported is not None and has_tensorrt():
                yield run(OPTIONAL_BACKEND, inputs.exported, precision, everything, threads=1, half=precision == "fp16")
            continue
        for index, (processes, threads) in enumerate(dict.fromkeys([(1, cores()), (1, 1), (cores(), 1)])):
            on_cores: dict[str, Any] = {"device": "cpu", "threads": threads, "processes": processes}
            if index == 0:
                yield run("onnx", file, precision, everything, **on_cores)
            else:  # the first one has answered the labelled rows
                yield run("onnx", file, precision, batches[:1], labelled=[], logits=None, **on_cores)


def planned_loads(inputs: BenchmarkInputs) -> list[LoadMode]:
    """Plan the loads on the server: closed loops, rows of one length, then open loops, whose rates follow from the closed ones."""
    options = inputs.options
    clients = options.concurrencies or CLIENTS
    first, concurrencies = options.protocols[0], sorted(clients)
    closed = [LoadMode(protocol=protocol, concurrency=count) for protocol in options.protocols for count in clients]
    by_length = [LoadMode(protocol=first, concurrency=concurrencies[0], length=length) for length in inputs.lengths]
    opened = [LoadMode(protocol=first, rate=loop.rate, share=loop.share) for loop in options.open_loops]
    return [*closed, *by_length, *opened]
