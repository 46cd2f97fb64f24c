"""Speed, computed from raw samples only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, NonNegativeInt

from serving.errors import SetupError

Spans = npt.NDArray[np.int64]
"""Start and end of each call, ns on one clock, ``[calls, 2]``."""

PERCENTILES = {"p50_ms": 50, "p90_ms": 90, "p95_ms": 95, "p99_ms": 99}
MEASURE_LONGER = "measure longer: --duration, or in fewer --rounds"


@dataclass(frozen=True, kw_only=True)
class RoundSpeed:
    """Speed in one round.

    Attributes:
        p50_ms: Median time of one call, ms (a call carries one row unless stated otherwise).
    """

    throughput: NonNegativeFloat
    p50_ms: NonNegativeFloat
    p90_ms: NonNegativeFloat
    p95_ms: NonNegativeFloat
    p99_ms: NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class Speed(RoundSpeed):
    """Speed over all rounds: the median of their throughputs, and the percentiles of all their calls together.

    Attributes:
        calls: Number of calls behind the percentiles.
        seconds: Measured time, all rounds together.
    """

    throughput_low: NonNegativeFloat
    throughput_high: NonNegativeFloat
    calls: NonNegativeInt
    seconds: NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class SliceTiming:
    """Result of one slice of timing.

    Attributes:
        seconds: Time over which this was counted.
        latencies: Duration of each call, ms, ``[calls]``.
    """

    throughput: float
    seconds: float
    latencies: npt.NDArray[np.float64]

    def speed(self) -> RoundSpeed:
        """Convert into the speed of a round."""
        return RoundSpeed(throughput=self.throughput, **_percentiles(self.latencies))


def as_spans(pairs: Any) -> Spans:
    """Convert a list of (start, end) into an array."""
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def closed_loop(spans: Spans) -> SliceTiming:
    """Compute the speed of requests of one row that many clients kept in flight.

    The rate is counted from the first answer to the last, so that requests in flight at the edges do not count.

    Raises:
        ValueError: There are fewer than two requests.
    """
    if len(spans) < 2:
        raise ValueError("a rate needs at least two requests")
    seconds = float(np.ptp(spans[:, 1])) / 1e9
    return SliceTiming(throughput=(len(spans) - 1) / seconds, seconds=seconds, latencies=_latencies([spans]))


def side_by_side(workers: Sequence[Spans], batch: int) -> SliceTiming:
    """Compute the speed of processes side by side, each making calls one after another.

    The rate is counted while all of them worked, as the last one has the machine to itself for a while.

    Raises:
        SetupError: They never worked at the same time.
    """
    start, end = max(spans[0, 0] for spans in workers), min(spans[-1, 1] for spans in workers)
    if end <= start:
        raise SetupError("processes that were timed side by side never worked at the same time", hint=MEASURE_LONGER)
    seconds = float(end - start) / 1e9
    answered = batch * sum(int(((spans[:, 1] > start) & (spans[:, 1] <= end)).sum()) for spans in workers)
    return SliceTiming(throughput=answered / seconds, seconds=seconds, latencies=_latencies(workers))


def over_rounds(timings: Sequence[SliceTiming]) -> Speed:
    """Combine the slices of all rounds into one speed."""
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
    values = np.percentile(milliseconds, list(PERCENTILES.values()))
    return dict(zip(PERCENTILES, map(float, values), strict=True))
