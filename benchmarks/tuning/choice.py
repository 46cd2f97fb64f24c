"""Which measured configuration is the best, and whether it is better than another beyond measurement noise.

Pure functions of the figures. Optuna has no part in it: its studies compare single values, while the final compares rounds that
ran side by side, and its Pareto front holds one point per trial, while a configuration has one point per load.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from serving.configuration import Configuration
from serving.manifests import LoadRecord, TrialRecord

LEANER = 0.95
"""A configuration that needs less than this share of the fastest one's memory is preferred if both are equally fast."""
LARGEST_LOSS = 0.05
"""By so much may the fastest exceed the throughput of a configuration that is preferred for its memory."""
LEAST_GAIN = 0.02
"""A smaller gain does not justify another configuration, even if it is steady."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A configuration and its successful trials: one of the search, or the rounds of the final.

    Attributes:
        trials: Its trials, at least one.
        latency_p99_ms: Latency budget in ms, or None.
    """

    trials: Sequence[TrialRecord]
    latency_p99_ms: float | None

    @property
    def configuration(self) -> Configuration:
        """The configuration."""
        return self.trials[0].configuration

    @property
    def levels(self) -> list[LoadRecord]:
        """Medians over the trials, one per number of clients."""
        return [_median(column) for column in zip(*(trial.levels for trial in self.trials), strict=True)]

    @property
    def best(self) -> LoadRecord | None:
        """The level of highest throughput within the latency budget, or None if no level is within it."""
        allowed = [level for level in self.levels if self.latency_p99_ms is None or level.p99_ms <= self.latency_p99_ms]
        return max(allowed, key=lambda level: level.throughput, default=None)

    @property
    def shown(self) -> LoadRecord:
        """The best level; if no level is within the budget, the one of lowest latency."""
        return self.best or min(self.levels, key=lambda level: level.p99_ms)

    @property
    def objective(self) -> float:
        """What tuning maximizes: throughput in rows/s if within the latency budget, otherwise the negative p99 latency in ms."""
        best = self.best
        return best.throughput if best is not None else -self.shown.p99_ms

    @property
    def memory_mib(self) -> float:
        """Median of the GPU memory if the model runs on a GPU, otherwise of the server's memory, in MiB."""
        return median(trial.memory_mib for trial in self.trials)

    def throughputs(self) -> list[float]:
        """Return the throughput at the best level, one value per trial, in rows/s."""
        clients = self.shown.concurrency
        return [level.throughput for trial in self.trials for level in trial.levels if level.concurrency == clients]


def gain(one: Measured, other: Measured) -> float:
    """Return by how much the throughput of ``one`` exceeds that of ``other``: the median of the relative gains per round."""
    return median(_gains(one, other))


def beats(one: Measured, other: Measured) -> bool:
    """Return whether ``one`` is better than ``other`` beyond measurement noise.

    Noise is the largest deviation of a round's gain from the median gain. A configuration within the latency budget beats one
    that exceeds it.
    """
    if (one.best is None) != (other.best is None):
        return one.best is not None
    gains = _gains(one, other)
    middle = median(gains)
    return middle > max(LEAST_GAIN, *(abs(found - middle) for found in gains))


def choose(finalists: Iterable[Measured], default: Configuration) -> Measured | None:
    """Return the winner, or None if no finalist is within the latency budget.

    The fastest wins, unless it does not beat the ``default``: then the default stays. A finalist that needs clearly less memory
    is preferred to the fastest if it is about as fast and beats the default too. (That the fastest does not beat it is no proof
    of that: noise alone can be the reason.)
    """
    able = [one for one in finalists if one.best is not None]
    if not able:
        return None
    fastest = max(able, key=lambda one: one.objective)
    untuned = next((one for one in able if one.configuration == default), None)
    if untuned is not None and (untuned is fastest or not beats(fastest, untuned)):
        return untuned
    leaner = [
        one
        for one in able
        if one.memory_mib < LEANER * fastest.memory_mib
        and gain(fastest, one) < LARGEST_LOSS
        and not beats(fastest, one)
        and (untuned is None or beats(one, untuned))
    ]
    return min(leaner, key=lambda one: one.memory_mib, default=fastest)


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A configuration under one load."""

    measured: Measured
    level: LoadRecord

    def dominates(self, other: OperatingPoint) -> bool:
        """Return whether this point is no worse in throughput, p99 and memory, and better in one of them."""
        own, others = self._costs(), other._costs()
        return own != others and all(mine <= theirs for mine, theirs in zip(own, others, strict=True))

    def _costs(self) -> tuple[float, float, float]:
        return -self.level.throughput, self.level.p99_ms, self.measured.memory_mib


def pareto_front(measured: Iterable[Measured]) -> list[OperatingPoint]:
    """Return the points that no other point dominates, highest throughput first."""
    points = [OperatingPoint(measured=one, level=level) for one in measured for level in one.levels]
    front = [point for point in points if not any(other.dominates(point) for other in points)]
    return sorted(front, key=lambda point: -point.level.throughput)


def _gains(one: Measured, other: Measured) -> list[float]:
    return [mine / theirs - 1 for mine, theirs in zip(one.throughputs(), other.throughputs(), strict=True)]


def _median(levels: Sequence[LoadRecord]) -> LoadRecord:
    found = {name: [getattr(level, name) for level in levels] for name in LoadRecord.model_fields}
    return LoadRecord.model_validate({name: None if None in values else median(values) for name, values in found.items()})
