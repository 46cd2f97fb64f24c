"""One way of answering, loaded and timed in a process of its own: ``python -m benchmarks.runners``.

The process reads a :class:`Job` as one JSON line, loads it and says ``{"ready": …}``. Each further line is a :class:`Slice`, which
it times and answers with ``{"spans": …}``; in between it sleeps. The line ``end`` is the last, answered with ``{"facts": …}``.
Nothing heavy is imported before the job is read: load time and memory are those of the way of answering alone.
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
"""Share of a slice that is spent on calls before it, untimed: the process slept while others had their turn."""


def timed_passes(runner: Callable[[RequestRows], object], rows: RequestRows, batch: int, seconds: float) -> list[Span]:
    """Call ``runner`` over ``rows``, ``batch`` at a time, again and again until ``seconds`` are over and a pass is whole.

    Every call carries ``batch`` rows: one that reaches the end goes on from the beginning. Passes are always whole (to within such
    a call), so that every way of answering is timed on the same mix of lengths.
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
    """Largest resident set this process has had, MiB.

    Not ``ru_maxrss``: that one is inherited from the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


class Worker:
    """A job, loaded: it has answered its labelled rows, and is ready to be timed.

    Args:
        started: when this process began, ns of ``time.perf_counter_ns``.
    """

    def __init__(self, job: WorkerJob, started: int) -> None:
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
        with OutputsFile(Path(job.logits) if job.logits is not None else None) as said:
            for row in job.labelled:
                self._answers.append(self._runner.judged([row]))
                said.add(self._runner.said)

    def time(self, wanted: Slice) -> list[Span]:
        """Make one slice: start and end of every call."""
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
    """Answers to one row each, ready for JSON: tensors by name, or the items of a library's own form."""
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
    """Serve one job over standard input and output; libraries that print go to standard error instead."""
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
    return 1  # the benchmark is gone: nobody wants the figures


if __name__ == "__main__":
    sys.exit(main())
