"""A worker process that loads one model and times it: ``python -m benchmarks.runners``.

The process reads a :class:`WorkerJob` as one JSON line, loads it and answers ``{"ready": …}``. Each further line is a
:class:`Slice`, which it times and answers with ``{"spans": …}``; in between it sleeps. The last line is ``end``, answered with
``{"facts": …}``. Nothing heavy is imported before the job is read: load time and memory are those of the backend alone.
:mod:`benchmarks.workers` is the other end.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.backends import BACKENDS
from benchmarks.jobs import END, RequestRows, Slice, Span, WorkerFacts, WorkerJob
from serving.artifact import sha256

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


def peak_rss_mib() -> float:
    """Read the peak resident set of this process, MiB.

    ``ru_maxrss`` would be inherited from the parent process.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


class Worker:
    """A loaded job that has answered its labelled rows and is ready to be timed."""

    def __init__(self, job: WorkerJob, started: int) -> None:
        """Load the job and answer its labelled rows.

        Args:
            job: What to load.
            started: Start of this process, ns of ``time.perf_counter_ns``.
        """
        from benchmarks.logits import OutputsFile
        from serving.bundle import load_bundle

        bundle = load_bundle(Path(job.bundle))
        self._job = job
        self._runner = BACKENDS[job.backend](job, bundle)
        loaded = time.perf_counter_ns()
        self._load_seconds = (loaded - started) / 1e9
        self._runner([job.first])
        self._first_answer_seconds = (time.perf_counter_ns() - loaded) / 1e9
        self._answers = []
        with OutputsFile(Path(job.logits) if job.logits is not None else None) as outputs:
            for row in job.labelled:
                self._answers.append(self._runner.evaluate([row]))
                outputs.add(self._runner.outputs)

    def time(self, wanted: Slice) -> list[Span]:
        """Time one slice: start and end of every call, ns."""
        timed_passes(self._runner, wanted.rows[: wanted.batch], wanted.batch, WARM_UP * wanted.seconds)
        return timed_passes(self._runner, wanted.rows, wanted.batch, wanted.seconds)

    def facts(self) -> WorkerFacts:
        """Describe what was loaded, what it cost and what it answered."""
        return WorkerFacts(
            file=str(self._runner.file),
            sha256=sha256(self._runner.file),
            precision=self._runner.precision(),
            threads=self._runner.threads,
            load_seconds=self._load_seconds,
            first_answer_seconds=self._first_answer_seconds,
            peak_rss_mib=peak_rss_mib(),
            gpu_memory_mib=_gpu_memory_mib(self._job),
            answers=_as_json(self._answers),
        )


def _as_json(answers: list[Any]) -> Any:
    """Answers to one row each as JSON: tensors by name, or a list of the library's own answers."""
    if answers and isinstance(answers[0], dict):
        from benchmarks.answers import joined, to_json

        return to_json(joined(answers))
    return [item for row in answers for item in row]


def _gpu_memory_mib(job: WorkerJob) -> float | None:
    if job.device != "gpu":
        return None
    from benchmarks.nvml import memory_mib

    return memory_mib([os.getpid()])


def main() -> int:
    """Serve one job over standard input and output; what libraries print goes to standard error."""
    started = time.perf_counter_ns()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = WorkerJob(**json.loads(sys.stdin.readline()))

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message, default=float) + "\n")  # a pipeline's scores may be numpy's
        channel.flush()

    worker = Worker(job, started)
    say({"ready": {}})
    for line in iter(sys.stdin.readline, ""):
        if line.strip() == END:
            say({"facts": asdict(worker.facts())})
            return 0
        say({"spans": worker.time(Slice(**json.loads(line)))})
    return 1  # the benchmark has ended without asking for the facts


if __name__ == "__main__":
    sys.exit(main())
