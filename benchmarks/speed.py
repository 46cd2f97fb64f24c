"""Speed, derived from raw samples and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Spans = npt.NDArray[np.int64]
"""``[calls, 2]``: start and end of each call, ns on one clock."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Args:
    throughput: rows answered per second.
    p50_ms, p90_ms, p95_ms, p99_ms: percentiles of the time one call took, ms (a call carries one row unless said otherwise).
    calls: how many calls the percentiles come from.
    seconds: how long was measured.
    """

    throughput: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    calls: int
    seconds: float


def as_spans(pairs: Any) -> Spans:
    """A list of (start, end) as an array."""
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def closed_loop_speed(spans: Spans) -> Speed:
    """Speed of requests of one row that many clients kept in flight at once.

    The rate is counted from the first answer to the last: what was in flight at the edges counts neither way.

    Raises:
        ValueError: fewer than two requests.
    """
    if len(spans) < 2:
        raise ValueError("a rate needs two requests or more")
    seconds = float(np.ptp(spans[:, 1])) / 1e9
    return _speed([spans], throughput=(len(spans) - 1) / seconds, seconds=seconds)


def workers_speed(workers: list[Spans], rows: list[int]) -> Speed:
    """Speed of workers side by side, each making calls one after another.

    The rate is counted while all of them worked: whoever ends last has the machine to itself for a while.

    Args:
        workers: the spans of each.
        rows: how many rows each answered in them.

    Raises:
        ValueError: they never worked at the same time.
    """
    start, end = max(spans[0, 0] for spans in workers), min(spans[-1, 1] for spans in workers)
    if end <= start:
        raise ValueError("workers that never worked at the same time have no common rate")
    seconds = float(end - start) / 1e9
    answered = sum(
        count * float(((spans[:, 1] > start) & (spans[:, 1] <= end)).mean()) for spans, count in zip(workers, rows, strict=True)
    )
    return _speed(workers, throughput=answered / seconds, seconds=seconds)


def _speed(workers: list[Spans], *, throughput: float, seconds: float) -> Speed:
    milliseconds = np.concatenate([spans[:, 1] - spans[:, 0] for spans in workers]) / 1e6
    p50, p90, p95, p99 = (float(value) for value in np.percentile(milliseconds, [50, 90, 95, 99]))
    return Speed(throughput=throughput, p50_ms=p50, p90_ms=p90, p95_ms=p95, p99_ms=p99, calls=len(milliseconds), seconds=seconds)
