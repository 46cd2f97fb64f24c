"""Worker processes (:mod:`benchmarks.runners`): started once, timed in turns, asked for their facts at the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from benchmarks.generation.generation_jobs import GenerationJob, TimedReply, TimedRequest
from benchmarks.jobs import WorkerFacts, WorkerJob
from benchmarks.speed import Spans, as_spans
from serving.errors import SetupError
from serving.huge_pages import with_huge_pages


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    channel: Connection[Any, Any]
    errors: IO[str]

    def send(self, message: object) -> None:
        with contextlib.suppress(ConnectionError):  # it ended: receive() says why
            self.channel.send(message)

    def receive(self) -> Any:
        try:
            return self.channel.recv()
        except (EOFError, ConnectionError):
            code = self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        reason = lines[-1] if lines and code > 0 else f"it was ended by signal {-code}"
        raise SetupError(
            f"a benchmark worker failed: {reason}",
            hint="there may be too little memory" if code < 0 else "see its traceback with: --debug",
        ) from RuntimeError("\n".join(lines))


@dataclass(frozen=True)
class Workers:
    """Processes side by side, loaded and asleep until their turn."""

    processes: list[_Worker]

    def measure(self, rows: list[list[str]], batch: int, seconds: float) -> list[Spans]:
        """Time one slice in all processes at the same time.

        Each process begins its passes over the rows at another row, so that they do not work on the same one together.

        Returns:
            Start and end of every call, ns, by process.

        Raises:
            SetupError: A worker failed; the message holds its last line, the cause its whole traceback.
        """
        for index, worker in enumerate(self.processes):
            start = index * len(rows) // len(self.processes)
            worker.send((rows[start:] + rows[:start], batch, seconds))
        return [as_spans(worker.receive()) for worker in self.processes]

    def generate(self, prompts: list[str], in_flight: int, seconds: float) -> TimedReply:
        """Time one slice of a model that generates, in its one process.

        Returns:
            When the tokens came, and the processor time of the process meanwhile, seconds.

        Raises:
            SetupError: The worker failed.
        """
        (worker,) = self.processes
        request: TimedRequest = (prompts, in_flight, seconds)
        worker.send(request)
        reply: TimedReply = worker.receive()
        return reply

    def end(self) -> list[WorkerFacts]:
        """End the processes, and return what each reports; nothing can be measured after that.

        Raises:
            SetupError: A worker failed.
        """
        for worker in self.processes:
            worker.send(None)
        return [worker.receive() for worker in self.processes]


@contextlib.contextmanager
def started(job: WorkerJob | GenerationJob, processes: int = 1) -> Iterator[Workers]:
    """Load a job in fresh processes that live as long as the block.

    They load one after another, so that load times do not affect each other. Only the first answers the labelled rows.

    Raises:
        SetupError: A worker failed; the message holds its last line, the cause its whole traceback.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        for index in range(processes):
            worker = stack.enter_context(_started())
            worker.send(job if index == 0 else job.without_labelled())
            worker.receive()
            workers.append(worker)
        yield Workers(workers)


@contextlib.contextmanager
def _started() -> Iterator[_Worker]:
    ours, theirs = Pipe()
    with ours, tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "benchmarks.runners", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=with_huge_pages(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        with process:
            try:
                yield _Worker(process, ours, errors)
            finally:
                process.kill()  # it has reported its facts, or they are not needed
