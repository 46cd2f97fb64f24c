"""Speed, derived from raw samples and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import SetupError

Spans = npt.NDArray[np.int64]
"""``[calls, 2]``: start and end of each call, ns on one clock."""

MEASURE_LONGER = "measure longer: --duration, or in fewer --rounds"


@dataclass(frozen=True, kw_only=True)
class RoundSpeed:
    """Speed in one round.

    Args:
        throughput: rows answered per second.
        p50_ms, p90_ms, p95_ms, p99_ms: percentiles of the time one call took, ms (a call carries one row unless said otherwise).
    """

    throughput: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Speed(RoundSpeed):
    """Speed over all rounds: the median of their throughputs, and the percentiles of all their calls together.

    Args:
        throughput_low, throughput_high: the throughput of the slowest round and of the fastest.
        calls: how many calls the percentiles come from.
        seconds: how long was measured, all rounds together.
    """

    throughput_low: float
    throughput_high: float
    calls: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LoopTiming:
    """What one slice of timing gave: rows per second, the seconds this was counted over, and how long each call took, ms."""

    throughput: float
    seconds: float
    latencies: npt.NDArray[np.float64]

    def speed(self) -> RoundSpeed:
        """As the speed of a round."""
        return RoundSpeed(throughput=self.throughput, **_percentiles(self.latencies))


def as_spans(pairs: Any) -> Spans:
    """A list of (start, end) as an array."""
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def closed_loop(spans: Spans) -> LoopTiming:
    """Requests of one row that many clients kept in flight at once.

    The rate is counted from the first answer to the last: what was in flight at the edges counts neither way.

    Raises:
        ValueError: fewer than two requests.
    """
    if len(spans) < 2:
        raise ValueError("a rate needs two requests or more")
    seconds = float(np.ptp(spans[:, 1])) / 1e9
    return LoopTiming(throughput=(len(spans) - 1) / seconds, seconds=seconds, latencies=_latencies([spans]))


def side_by_side(workers: Sequence[Spans], batch: int) -> LoopTiming:
    """Workers side by side, each making calls of ``batch`` rows one after another.

    The rate is counted while all of them worked: whoever ends last has the machine to itself for a while.

    Raises:
        SetupError: they never worked at the same time.
    """
    start, end = max(spans[0, 0] for spans in workers), min(spans[-1, 1] for spans in workers)
    if end <= start:
        raise SetupError("processes that were timed side by side never worked at the same time", hint=MEASURE_LONGER)
    seconds = float(end - start) / 1e9
    answered = batch * sum(int(((spans[:, 1] > start) & (spans[:, 1] <= end)).sum()) for spans in workers)
    return LoopTiming(throughput=answered / seconds, seconds=seconds, latencies=_latencies(workers))


def over_rounds(timings: Sequence[LoopTiming]) -> Speed:
    """The speed that slices of the same way of answering come to, one slice a round."""
    throughputs = [timing.throughput for timing in timings]
    latencies = np.concatenate([timing.latencies for timing in timings])
    return Speed(
        throughput=median(throughputs),
        throughput_low=min(throughputs),
        throughput_high=max(throughputs),
        **_percentiles(latencies),
        calls=len(latencies),
        seconds=sum(timing.seconds for timing in timings),
    )


def _latencies(workers: Sequence[Spans]) -> npt.NDArray[np.float64]:
    milliseconds: npt.NDArray[np.float64] = np.concatenate([spans[:, 1] - spans[:, 0] for spans in workers]) / 1e6
    return milliseconds


def _percentiles(milliseconds: npt.NDArray[np.float64]) -> dict[str, float]:
    shares = (50, 90, 95, 99)
    return {f"p{share}_ms": float(value) for share, value in zip(shares, np.percentile(milliseconds, shares), strict=True)}
