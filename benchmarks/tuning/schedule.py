"""The order of trials within the allowed time: first the search, then the final."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean

from benchmarks.tuning.choice import Measured
from benchmarks.tuning.testbed import Testbed
from benchmarks.tuning.tune_options import TuneOptions
from benchmarks.tuning.tuning_study import TuningStudy
from serving.configuration import Configuration
from serving.manifests import TrialRecord
from serving.reporting import logger

FINALISTS = 3
"""Number of places in the final besides the default."""
ROUNDS = 3
LEAST_ROUNDS = 2
"""A single round cannot tell a gain from noise."""
LISTED = 3


@dataclass(kw_only=True)
class Schedule:
    """Makes trials until the allowed time is used up.

    Attributes:
        study: Chooses and keeps the trials of the search. The time of trials that an earlier run made counts too, so an
            interrupted tuning ends like one that was not interrupted.
        begin: Called when a trial begins, with its number, the expected number of trials, and the configuration.
        final_trials: Trials of the final so far, in order.
    """

    testbed: Testbed
    study: TuningStudy
    options: TuneOptions
    begin: Callable[[int, int, str], None]
    final_trials: list[TrialRecord] = field(default_factory=list)

    @property
    def trials(self) -> list[TrialRecord]:
        """All trials so far, those of the search first."""
        return [*self.study.trials, *self.final_trials]

    def search(self) -> None:
        """Try one configuration after the other, as long as the final fits into the remaining time."""
        final = ROUNDS * (FINALISTS + 1)
        while untried := self.study.untried:
            count = len(self.study.trials)
            if count and self._affordable() < count + 1 + final:
                self._report_untried(untried)
                return
            asked, configuration = self.study.ask()
            about = max(count + 1, min(count + len(untried) + final, self._affordable()))
            self.study.tell(asked, self._try(configuration, 0, about))

    def final(self, configurations: Sequence[Configuration]) -> None:
        """Measure each configuration once per round, in reverse order in every other round; fewer rounds if time is short."""
        fitting = self._affordable() - len(self.trials)
        rounds = min(ROUNDS, max(LEAST_ROUNDS, fitting // len(configurations)))
        if rounds < ROUNDS:
            logger.warning(f"{rounds} rounds in the final instead of {ROUNDS}: more --minutes would be needed")
        about = len(self.trials) + rounds * len(configurations)
        for number in range(1, rounds + 1):
            for configuration in configurations if number % 2 else reversed(configurations):
                self.final_trials.append(self._try(configuration, number, about))

    def _report_untried(self, untried: Sequence[Configuration]) -> None:
        named = "; ".join(map(str, untried[:LISTED]))
        more = f" and {len(untried) - LISTED} more" if len(untried) > LISTED else ""
        logger.warning(f"not tried, as {self.options.minutes:g} minutes are too few: {named}{more}")

    def _try(self, configuration: Configuration, number: int, about: int) -> TrialRecord:
        count = len(self.trials) + 1
        self.begin(count, about, str(configuration))
        trial = self.testbed.measure(configuration, number)
        logger.info(f"trial {count} of about {about}: {configuration}: {self._described(trial)}")
        return trial

    def _affordable(self) -> int:
        """Return the number of trials that fit into the allowed time, including those already made."""
        trials = self.trials
        seconds = [trial.seconds for trial in trials if trial.failure is None]
        usual = mean(seconds) if seconds else self.testbed.expected_seconds()
        left = 60 * self.options.minutes - sum(trial.seconds for trial in trials)
        return len(trials) + int(left // usual)

    def _described(self, trial: TrialRecord) -> str:
        if trial.failure is not None:
            return f"failed: {trial.failure}"
        measured = Measured(trials=[trial], latency_p99_ms=self.options.latency_p99_ms)
        return f"{measured.shown}{'' if measured.best else ', too slow'}"
