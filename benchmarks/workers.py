"""Worker processes (:mod:`benchmarks.runners`): started once, timed in turns, asked for their facts at the end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any, cast

from benchmarks.jobs import END, Slice, WorkerFacts, WorkerJob, to_line
from benchmarks.speed import Spans, as_spans
from serving.errors import SetupError


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[str]
    stdin: IO[str]
    stdout: IO[str]
    errors: IO[str]

    def send(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended: receive() says why
            self.stdin.write(line + "\n")
            self.stdin.flush()

    def receive(self, kind: str) -> Any:
        line = self.stdout.readline()
        if not line:
            self._raise()
        return json.loads(line)[kind]

    def _raise(self) -> None:
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

        Args:
            rows: The rows.
            batch: Rows per call.
            seconds: Least duration.

        Returns:
            Start and end of every call, ns, by process.

        Raises:
            SetupError: A worker failed; the message holds its last line, the cause its whole traceback.
        """
        for index, worker in enumerate(self.processes):
            start = index * len(rows) // len(self.processes)
            worker.send(to_line(Slice(rows=rows[start:] + rows[:start], batch=batch, seconds=seconds)))
        return [as_spans(worker.receive("spans")) for worker in self.processes]

    def end(self) -> list[WorkerFacts]:
        """End the processes; nothing can be measured after that.

        Returns:
            What each process reports.

        Raises:
            SetupError: A worker failed.
        """
        for worker in self.processes:
            worker.send(END)
        return [WorkerFacts(**worker.receive("facts")) for worker in self.processes]


@contextlib.contextmanager
def started(job: WorkerJob, processes: int = 1) -> Iterator[Workers]:
    """Load a job in fresh processes that live as long as the block.

    They load one after another, so that load times do not affect each other. Only the first answers the labelled rows.

    Raises:
        SetupError: A worker failed; the message holds its last line, the cause its whole traceback.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        for index in range(processes):
            worker = stack.enter_context(_started())
            worker.send(to_line(replace(job, labelled=job.labelled if index == 0 else [])))
            worker.receive("ready")
            workers.append(worker)
        yield Workers(workers)


@contextlib.contextmanager
def _started() -> Iterator[_Worker]:
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.runners"],
            text=True,
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        stdin = cast(IO[str], process.stdin)
        with process:
            try:
                yield _Worker(process, stdin, cast(IO[str], process.stdout), errors)
            finally:
                process.kill()  # it has reported its facts, or they are not needed
                with contextlib.suppress(BrokenPipeError):  # a line that it did not read before it ended
                    stdin.close()
