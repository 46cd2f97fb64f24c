"""Which of the measured configurations is the best, and whether it is better than the noise. Pure: figures in, a choice out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.tuning.trial import LevelSpeed, Trial
from serving.configuration import Configuration

LEANER = 0.95
"""So much of another's memory must a configuration be content with to be chosen for that."""
LEAST_GAIN = 0.02
"""A smaller gain is not worth another configuration, however steady it is."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A configuration and its successful trials, one or, by turns with others, several.

    Args:
        latency_p99_ms: the latency allowed, ms; None for any.
    """

    configuration: Configuration
    trials: Sequence[Trial]
    latency_p99_ms: float | None

    @property
    def levels(self) -> list[LevelSpeed]:
        """Medians over the trials, by number of clients."""
        return [_median(column) for column in zip(*(trial.levels for trial in self.trials), strict=True)]

    @property
    def best(self) -> LevelSpeed | None:
        """The level of highest throughput among those within the allowed latency, None where none is."""
        allowed = [level for level in self.levels if self.latency_p99_ms is None or level.p99_ms <= self.latency_p99_ms]
        return max(allowed, key=lambda level: level.throughput, default=None)

    @property
    def shown(self) -> LevelSpeed:
        """The best level, where none is allowed the one of lowest latency."""
        return self.best or min(self.levels, key=lambda level: level.p99_ms)

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts configurations, the best last: within the allowed latency by throughput, and below those by latency."""
        best = self.best
        return (True, best.throughput) if best is not None else (False, -self.shown.p99_ms)

    @property
    def memory_mib(self) -> float:
        """GPU memory where the model runs on one, otherwise the server's share of the machine's, median, MiB."""
        return median(trial.memory_mib for trial in self.trials)

    def throughputs(self) -> list[float]:
        """At the best level, by trial."""
        clients = self.shown.concurrency
        return [level.throughput for trial in self.trials for level in trial.levels if level.concurrency == clients]


def gain(one: Measured, other: Measured) -> float:
    """How much more throughput ``one`` has than ``other``, relative: the median over the rounds in which both were measured."""
    return median(_gains(one, other))


def beats(one: Measured, other: Measured) -> bool:
    """Whether ``one`` is better than ``other`` by more than the noise.

    Rounds stand side by side, so noise is how far the gain of any round lies from the median one. Whoever is within the allowed
    latency beats whoever is not.
    """
    if (one.best is None) != (other.best is None):
        return one.best is not None
    gains = _gains(one, other)
    middle = median(gains)
    return middle > max(LEAST_GAIN, *(abs(found - middle) for found in gains))


def choose(finalists: Iterable[Measured], default: Configuration) -> Measured | None:
    """The winner; None where no finalist is within the allowed latency.

    Of those that the fastest does not beat the ``default`` is taken, else the one that needs clearly less memory than it.
    """
    able = [one for one in finalists if one.best is not None]
    if not able:
        return None
    fastest = max(able, key=lambda one: one.rank)
    equal = [one for one in able if one is fastest or not beats(fastest, one)]
    for one in equal:
        if one.configuration == default:
            return one
    leaner = [one for one in equal if one.memory_mib < LEANER * fastest.memory_mib]
    return min(leaner, key=lambda one: one.memory_mib, default=fastest)


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a configuration gives under one load."""

    measured: Measured
    level: LevelSpeed

    def dominates(self, other: Point) -> bool:
        """Whether it is no worse in throughput, p99 and memory, and better in one of them."""
        own, others = self._costs(), other._costs()
        return own != others and all(mine <= theirs for mine, theirs in zip(own, others, strict=True))

    def _costs(self) -> tuple[float, float, float]:
        return -self.level.throughput, self.level.p99_ms, self.measured.memory_mib


def frontier(measured: Iterable[Measured]) -> list[Point]:
    """Points that no other dominates, from the highest throughput to the lowest."""
    points = [Point(measured=one, level=level) for one in measured for level in one.levels]
    kept = [point for point in points if not any(other.dominates(point) for other in points)]
    return sorted(kept, key=lambda point: -point.level.throughput)


def _gains(one: Measured, other: Measured) -> list[float]:
    return [mine / theirs - 1 for mine, theirs in zip(one.throughputs(), other.throughputs(), strict=True)]


def _median(levels: Sequence[LevelSpeed]) -> LevelSpeed:
    middle = {
        name: median(getattr(level, name) for level in levels) for name in ("throughput", "p50_ms", "p99_ms", "executed_batch")
    }
    return LevelSpeed(concurrency=levels[0].concurrency, **middle)
