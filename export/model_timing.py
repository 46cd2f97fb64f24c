"""Measures the speed of models alone, without tokenization."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from export.data import sample_indices
from export.rows import EncodedRows
from export.verify import BATCH, Run
from serving.manifests import Throughput
from serving.runtime.types import Arrays

SPEED_ROWS, SPEED_PASSES = 128, 3
"""Number of rows that the speed is measured on, and number of passes over them."""


@dataclass(frozen=True, kw_only=True)
class ModelTiming:
    """Speed of a model alone on one thread, without tokenization.

    Attributes:
        latency_ms: Median latency of one row, ms.
        throughput: Rows per second.
    """

    latency_ms: float
    throughput: Throughput


def speeds(runs: Mapping[str, Run], rows: EncodedRows, *, seed: int) -> dict[str, ModelTiming]:
    """Measure the speed of each model alone, without tokenization, on up to 128 rows in random order.

    The models take turns, three passes each, and the fastest pass counts, so that other load on the machine affects all alike.

    Args:
        runs: The models by name, each set to one thread.
        rows: The rows to draw from.
        seed: Seed of the draw.

    Returns:
        The speed by name.
    """
    chosen = sample_indices(len(rows.lengths), SPEED_ROWS, seed)
    np.random.default_rng(seed).shuffle(chosen)
    feeds = {size: [rows.feed(chosen[start : start + size]) for start in range(0, len(chosen), size)] for size in (1, BATCH)}
    timings: dict[tuple[str, int], list[list[float]]] = {(name, size): [] for name in runs for size in feeds}
    for run in runs.values():
        _timed(run, feeds[1][:5] + feeds[BATCH][:1])  # warm-up: the first calls allocate memory
    for _ in range(SPEED_PASSES):
        for (name, size), passes in timings.items():
            passes.append(_timed(runs[name], feeds[size]))
    return {name: _timing({size: timings[name, size] for size in feeds}, len(chosen)) for name in runs}


def _timing(passes: Mapping[int, list[list[float]]], rows: int) -> ModelTiming:
    """Derive the figures of one model from the seconds of each call, by batch size and pass."""
    throughput = {size: rows / min(map(sum, found)) for size, found in passes.items()}
    return ModelTiming(
        latency_ms=1000 * median(min(passes[1], key=sum)),
        throughput=Throughput(one_by_one=throughput[1], batched=throughput[BATCH]),
    )


def _timed(run: Run, feeds: Sequence[Arrays]) -> list[float]:
    seconds = []
    for feed in feeds:
        started = time.perf_counter()
        run(feed)
        seconds.append(time.perf_counter() - started)
    return seconds
