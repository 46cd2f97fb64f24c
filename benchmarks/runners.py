"""A worker process that loads one model and times it: ``python -m benchmarks.runners FD``.

``FD`` is the process's end of a :func:`multiprocessing.Pipe`. The process receives a :class:`WorkerJob` and sends None when the
model is loaded. For each (rows, batch, seconds) that it receives, it times a slice and sends its spans; in between it sleeps. For
None it sends its :class:`WorkerFacts` and ends. Nothing heavy is imported before the job is read: load time and memory are those of
the backend alone. :mod:`benchmarks.workers` is the other end. A
:class:`GenerationJob` is done by :mod:`benchmarks.generation.generation_worker`.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from benchmarks.backends import BACKENDS
from benchmarks.jobs import RequestRows, Span, WorkerFacts, WorkerJob
from benchmarks.own_memory import peak_rss_mib
from serving.artifact import sha256

if TYPE_CHECKING:
    from benchmarks.generation.generation_jobs import GenerationJob

WARM_UP = 0.1
"""Share of a slice that is spent on untimed calls before it, as the process slept while others had their turn."""


def timed_passes(runner: Callable[[RequestRows], object], rows: RequestRows, batch: int, seconds: float) -> list[Span]:
    """Call a model over rows repeatedly until the time is over and a pass is complete.

    Every call carries ``batch`` rows: one that reaches the end continues from the beginning. Passes are always complete (to within
    such a call), so that every model is timed on the same mix of lengths.

    Args:
        runner: The model.
        rows: The rows.
        batch: Rows per call.
        seconds: Least duration.

    Returns:
        Start and end of every call, ns.
    """
    stream = itertools.cycle(rows)
    spans: list[Span] = []
    deadline = time.perf_counter_ns() + round(seconds * 1e9)
    while True:
        call = list(itertools.islice(stream, batch))
        started = time.perf_counter_ns()
        runner(call)
        spans.append((started, time.perf_counter_ns()))
        ended_a_pass = len(spans) * batch % len(rows) < batch
        if ended_a_pass and spans[-1][1] >= deadline:
            return spans


def serve_job(channel: Connection[Any, Any]) -> None:
    """Load the job that arrives on a channel, answer its labelled rows, and time slices until the benchmark asks for the facts.

    Raises:
        EOFError: The benchmark has ended without asking for them.
    """
    started = time.perf_counter_ns()
    job: WorkerJob | GenerationJob = channel.recv()
    if not isinstance(job, WorkerJob):
        from benchmarks.generation.generation_worker import serve_generation

        serve_generation(channel, job, started)
        return
    from benchmarks.logits import outputs_file
    from serving.bundle import load_bundle

    runner = BACKENDS[job.backend](job, load_bundle(job.bundle).with_max_length(job.max_length))
    loaded = time.perf_counter_ns()
    runner([job.first])
    answered = time.perf_counter_ns()
    answers = []
    with outputs_file(job.logits) as add:
        for row in job.labelled:
            answers.append(runner.evaluate([row]))
            add(runner.outputs)
    channel.send(None)
    while (wanted := channel.recv()) is not None:
        rows, batch, seconds = wanted
        timed_passes(runner, rows[:batch], batch, WARM_UP * seconds)
        channel.send(timed_passes(runner, rows, batch, seconds))
    facts = WorkerFacts(
        file=runner.file,
        sha256=sha256(runner.file),
        precision=runner.precision(),
        threads=runner.threads,
        load_seconds=(loaded - started) / 1e9,
        first_answer_seconds=(answered - loaded) / 1e9,
        peak_rss_mib=peak_rss_mib(),
        gpu_memory_mib=_gpu_memory_mib(job),
        answers=_joined(answers),
    )
    channel.send(facts)


def _joined(answers: list[Any]) -> Any:
    """Join answers to one row each: tensors by name, or a list of the library's own answers."""
    if answers and isinstance(answers[0], dict):
        from benchmarks.answers import joined

        return joined(answers)
    return [item for row in answers for item in row]


def _gpu_memory_mib(job: WorkerJob) -> float | None:
    if job.device != "gpu":
        return None
    from benchmarks.nvml import memory_mib

    return memory_mib([os.getpid()])


if __name__ == "__main__":
    serve_job(Connection(int(sys.argv[1])))
