"""What the trials of a tuning come to. Derived from them and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.tuning.choice import Measured, Point, choose, frontier, gain
from benchmarks.tuning.trial import Trial
from serving.configuration import Configuration


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Args:
    trials: all that were made.
    default: how the model would be served untuned.
    latency_p99_ms: the latency allowed, ms; None for any.
    """

    trials: Sequence[Trial]
    default: Configuration
    latency_p99_ms: float | None

    @property
    def searched(self) -> list[Measured]:
        """Every configuration that could be served, as the search found it, the best first."""
        found = [self._measured([trial]) for trial in self.trials if trial.round == 0 and trial.failure is None]
        return sorted(found, key=lambda one: one.rank, reverse=True)

    @property
    def finalists(self) -> list[Measured]:
        """Those measured again by turns, the best first. One that failed even once is none."""
        final = [trial for trial in self.trials if trial.round > 0]
        failed = {trial.configuration for trial in final if trial.failure is not None}
        by_configuration: dict[Configuration, list[Trial]] = {}
        for trial in final:
            if trial.configuration not in failed:
                by_configuration.setdefault(trial.configuration, []).append(trial)
        return sorted(map(self._measured, by_configuration.values()), key=lambda one: one.rank, reverse=True)

    @property
    def measured(self) -> list[Measured]:
        """Every configuration that could be served, finalists by their final."""
        finalists = {one.configuration: one for one in self.finalists}
        failed = {trial.configuration for trial in self.trials if trial.failure is not None}
        others = [one for one in self.searched if one.configuration not in finalists and one.configuration not in failed]
        return [*finalists.values(), *others]

    @property
    def failures(self) -> dict[Configuration, str]:
        """Why those that could not be served could not."""
        return {trial.configuration: trial.failure for trial in self.trials if trial.failure is not None}

    @property
    def winner(self) -> Measured | None:
        """See :func:`benchmarks.tuning.choice.choose`."""
        return choose(self.finalists, self.default)

    @property
    def untuned(self) -> Measured | None:
        """The default as the final found it, None where it could not be served."""
        return next((one for one in self.finalists if one.configuration == self.default), None)

    @property
    def ratio(self) -> float | None:
        """Throughput of the winner over that of the default; None where one of the two is not within the allowed latency."""
        if self.winner is None or self.untuned is None or self.untuned.best is None:
            return None
        return 1 + gain(self.winner, self.untuned)

    @property
    def frontier(self) -> list[Point]:
        """See :func:`benchmarks.tuning.choice.frontier`."""
        return frontier(self.measured)

    def _measured(self, trials: Sequence[Trial]) -> Measured:
        return Measured(configuration=trials[0].configuration, trials=trials, latency_p99_ms=self.latency_p99_ms)
