"""What a benchmark measures, read and checked: handed to every part of it alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import rate_name
from serving.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class BenchmarkRows:
    """Real rows, each a list of strings in the order of the task's inputs.

    Args:
        timed: what speed is measured on, in this order: by length in tokens, None for rows as they are.
        labelled: what every quality is measured on.
        references: what the task's predictions are held against.
    """

    timed: dict[int | None, list[list[str]]]
    labelled: list[list[str]]
    references: list[Any]


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Requests that come at random moments, whether answers come or not: ``rate`` per second, or a ``share`` of what the server
    answers in the best closed loop (0.8 is 80 %). One of the two is None."""

    rate: float | None = None
    share: float | None = None

    @property
    def name(self) -> str:
        """As gates address it."""
        return rate_name(rate=self.rate, share=self.share)


@dataclass(frozen=True, kw_only=True)
class BenchmarkInputs:
    """Args:
    checkpoint: folder of the original.
    precisions: ONNX variants to run in process.
    exported: the ONNX graph as Optimum writes it, to run too; None leaves it out.
    compiled: run torch.compile's version of the original too.
    device: ``cpu`` or ``gpu``, in process.
    batches: rows per call in process.
    protocols, concurrencies: how the server is asked in closed loops.
    open_loops: and in open ones.
    duration: seconds of timing per figure, all rounds together.
    rounds: how often every way of answering gets its turn.
    """

    bundle: Bundle
    checkpoint: Path
    rows: BenchmarkRows
    precisions: tuple[str, ...]
    exported: Path | None
    compiled: bool
    device: str
    batches: tuple[int, ...]
    protocols: tuple[str, ...]
    concurrencies: tuple[int, ...]
    open_loops: tuple[OpenLoop, ...]
    duration: float
    rounds: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """In tokens, of the rows that have one length."""
        return tuple(length for length in self.rows.timed if length is not None)
