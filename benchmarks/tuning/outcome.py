"""The outcome of a tuning, derived from its trials alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.tuning.choice import Measured, OperatingPoint, choose, gain, pareto_front
from serving.configuration import Configuration
from serving.manifests import TrialRecord


@dataclass(frozen=True, kw_only=True)
class TuningOutcome:
    """The outcome of a tuning.

    Attributes:
        default: How the model is served untuned.
        latency_p99_ms: Latency budget in ms, or None.
    """

    trials: Sequence[TrialRecord]
    default: Configuration
    latency_p99_ms: float | None

    @property
    def searched(self) -> list[Measured]:
        """Every configuration that could be served, with its trial of the search, best first."""
        found = [self._measured([trial]) for trial in self.trials if trial.round == 0 and trial.failure is None]
        return sorted(found, key=lambda one: one.objective, reverse=True)

    @property
    def finalists(self) -> list[Measured]:
        """Every configuration of the final that failed in no round, best first."""
        final = [trial for trial in self.trials if trial.round > 0]
        failed = {trial.configuration for trial in final if trial.failure is not None}
        by_configuration: dict[Configuration, list[TrialRecord]] = {}
        for trial in final:
            if trial.configuration not in failed:
                by_configuration.setdefault(trial.configuration, []).append(trial)
        return sorted(map(self._measured, by_configuration.values()), key=lambda one: one.objective, reverse=True)

    @property
    def measured(self) -> list[Measured]:
        """Every configuration that failed in no trial, finalists with their rounds of the final."""
        finalists = {one.configuration: one for one in self.finalists}
        others = [one for one in self.searched if one.configuration not in finalists and one.configuration not in self.failures]
        return [*finalists.values(), *others]

    @property
    def failures(self) -> dict[Configuration, str]:
        """Why configurations could not be served."""
        return {trial.configuration: trial.failure for trial in self.trials if trial.failure is not None}

    @property
    def winner(self) -> Measured | None:
        """The best configuration; see :func:`benchmarks.tuning.choice.choose`."""
        return choose(self.finalists, self.default)

    @property
    def untuned(self) -> Measured | None:
        """The default as measured in the final, or None if it could not be served."""
        return next((one for one in self.finalists if one.configuration == self.default), None)

    @property
    def ratio(self) -> float | None:
        """Throughput of the winner divided by that of the default; None if one of them exceeds the latency budget."""
        if self.winner is None or self.untuned is None or self.untuned.best is None:
            return None
        return 1 + gain(self.winner, self.untuned)

    @property
    def frontier(self) -> list[OperatingPoint]:
        """The Pareto front of throughput, p99 latency and memory."""
        return pareto_front(self.measured)

    def _measured(self, trials: Sequence[TrialRecord]) -> Measured:
        return Measured(trials=trials, latency_p99_ms=self.latency_p99_ms)
