"""Messages between the benchmark and its worker processes (:mod:`benchmarks.runners`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

RequestRows = Sequence[Sequence[str]]
"""Rows of requests, each the strings of the task's inputs in order."""

Span = tuple[int, int]
"""Start and end of one call, ns on a clock that all processes share."""


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """What one worker process loads.

    Attributes:
        backend: A key of :data:`benchmarks.backends.BACKENDS`.
        bundle: The bundle whose task and tokenizer apply.
        max_length: Maximum tokens of a row; None: as exported.
        device: ``cpu`` or ``gpu``.
        half: Run in the device's best half precision (PyTorch), or let TensorRT use fp16.
        threads: Threads of one operator; None leaves the library's own choice.
        first: The row of the first call: strings in the order of the task's inputs.
        labelled: Rows answered one by one before anything is timed: their answers are evaluated, and they warm up the model.
        logits: File for the model's outputs for those rows (``.npz``); None for none.
    """

    backend: str
    source: Path
    bundle: Path
    device: str
    max_length: int | None = None
    half: bool = False
    threads: int | None = None
    most_rows: int
    first: list[str]
    labelled: list[list[str]]
    logits: Path | None = None

    def without_labelled(self) -> Self:
        """Return the job of a process that answers no labelled rows."""
        return replace(self, labelled=[])


@dataclass(frozen=True, kw_only=True)
class WorkerFacts:
    """What a worker reports at its end.

    Attributes:
        precision: Precision that the model computes in; empty if only the bundle's manifest tells it.
        load_seconds: Time from an empty process to a loaded model.
        first_answer_seconds: Time of the first answer after that.
        gpu_memory_mib: GPU memory, MiB; None without a GPU.
        answers: Answers to the labelled rows: tensors by name, or a list of the library's own answers.
    """

    file: Path
    sha256: str
    precision: str
    threads: int
    load_seconds: float
    first_answer_seconds: float
    peak_rss_mib: float
    gpu_memory_mib: float | None
    answers: Any
