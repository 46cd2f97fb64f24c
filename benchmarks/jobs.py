"""What a benchmark's process (:mod:`benchmarks.runners`) is told, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

RequestRows = Sequence[Sequence[str]]
"""Rows of requests, each the strings of the task's inputs in order."""

Span = tuple[int, int]
"""Start and end of one call, ns on a clock that all processes share."""

END = "end"


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """What one worker process is to load.

    Args:
        backend: a key of :data:`BACKENDS`.
        source: the checkpoint folder, or the ONNX file.
        bundle: the bundle whose task, tokenizer and ``max_length`` apply.
        device: ``cpu`` or ``gpu``.
        half: run in the device's best half precision (PyTorch), or let TensorRT use fp16.
        threads: threads of one operator; None leaves the library's own choice.
        most_rows: rows of the largest call that will be made.
        first: the row that is asked when all is loaded: a list of strings in the order of the task's inputs.
        labelled: rows answered one by one before anything is timed: they give the answers to judge, and warm up.
        logits: file to write what the model says of those rows to (``.npz``); None for none.
    """

    backend: str
    source: str
    bundle: str
    device: str
    half: bool = False
    threads: int | None = None
    most_rows: int
    first: list[str]
    labelled: list[list[str]]
    logits: str | None = None


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What a worker is to time next.

    Args:
        rows: one list of strings per row, as in :class:`Job`.
        batch: rows per call.
        seconds: whole passes over ``rows`` are made until they are over.
    """

    rows: list[list[str]]
    batch: int
    seconds: float


def to_json(line: WorkerJob | Slice) -> str:
    """As the worker reads it."""
    return json.dumps(asdict(line))
