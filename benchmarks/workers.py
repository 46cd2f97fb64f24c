"""Starts worker processes (:mod:`benchmarks.runners`), lets them begin together and collects what they measured."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any, cast

from benchmarks.runners import Job
from serving.errors import SetupError


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[str]
    stdin: IO[str]
    stdout: IO[str]
    errors: IO[str]

    def send(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died: receive() says why
            self.stdin.write(line + "\n")
            self.stdin.flush()

    def receive(self, kind: str) -> dict[str, Any]:
        line = self.stdout.readline()
        if not line:
            self._raise()
        message: dict[str, Any] = json.loads(line)[kind]
        return message

    def _raise(self) -> None:
        code = self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        reason = lines[-1] if lines and code > 0 else f"it was ended by signal {-code}"
        raise SetupError(
            f"a benchmark worker failed: {reason}",
            hint="there may be too little memory" if code < 0 else "see its traceback with: --debug",
        ) from RuntimeError("\n".join(lines))


def run_workers(job: Job, processes: int = 1) -> list[dict[str, Any]]:
    """Run ``job`` in ``processes`` fresh processes that start timing at the same moment.

    Returns:
        What :func:`benchmarks.runners.work` gives, one per process. Each begins its passes at another row; only the first
        answers the labelled rows.

    Raises:
        SetupError: a worker failed; the message carries its last line, the cause its whole traceback.
    """
    shares = [
        replace(job, rows=_rotated(job.rows, index, processes), labelled=job.labelled if index == 0 else [])
        for index in range(processes)
    ]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_started()) for _ in shares]
        for worker, share in zip(workers, shares, strict=True):
            worker.send(share.to_json())
        for worker in workers:
            worker.receive("ready")
        for worker in workers:
            worker.send("go")
        return [worker.receive("result") for worker in workers]


def _rotated(rows: list[list[str]], index: int, processes: int) -> list[list[str]]:
    start = index * len(rows) // processes
    return rows[start:] + rows[:start]


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
        with process:
            try:
                yield _Worker(process, cast(IO[str], process.stdin), cast(IO[str], process.stdout), errors)
            finally:
                process.kill()  # it has said all it had to say, or nobody listens any more
