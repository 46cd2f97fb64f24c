"""What a benchmark measures, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.benchmark_options import BenchmarkOptions
from export.tasks import bundle_task
from export.tasks._encoder import ExportedEncoderTask
from serving.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class BenchmarkRows:
    """Real rows, each a list of strings in the order of the task's inputs.

    Attributes:
        timed: Rows that speed is measured on, in this order, by length in tokens; None for rows as they are.
        labelled: Rows that quality is measured on.
        references: Labels of these, which the task's predictions are compared with.
    """

    timed: dict[int | None, list[list[str]]]
    labelled: list[list[str]]
    references: list[Any]


@dataclass(frozen=True, kw_only=True)
class BenchmarkInputs:
    """What a benchmark measures.

    Attributes:
        device: ``cpu`` or ``gpu``, in process.
        exported: The ONNX graph as Optimum exports it; None if it does not run, or was not exported yet.
    """

    options: BenchmarkOptions
    bundle: Bundle
    checkpoint: Path
    rows: BenchmarkRows
    precisions: tuple[str, ...]
    device: str
    exported: Path | None = None

    @cached_property
    def task(self) -> ExportedEncoderTask:
        """The bundle's task, ready for evaluation."""
        return bundle_task(self.bundle)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the rows that have one length."""
        return tuple(length for length in self.rows.timed if length is not None)
