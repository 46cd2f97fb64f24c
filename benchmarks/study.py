"""What a benchmark measures, read and checked: handed to every part of it alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Real rows, each a list of strings in the order of the task's inputs.

    Args:
        timed: what every speed is measured on, in this order.
        labelled: what every quality is measured on.
        references: what the task's predictions are held against.
    """

    timed: list[list[str]]
    labelled: list[list[str]]
    references: list[Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Args:
    checkpoint: folder of the original.
    precisions: ONNX variants to run in process.
    device: ``cpu`` or ``gpu``, in process.
    protocols, concurrencies: how the server is asked.
    duration: seconds of timing per figure, all rounds together.
    rounds: how often every way of answering gets its turn.
    """

    bundle: Bundle
    checkpoint: Path
    rows: Rows
    precisions: tuple[str, ...]
    device: str
    protocols: tuple[str, ...]
    concurrencies: tuple[int, ...]
    duration: float
    rounds: int
