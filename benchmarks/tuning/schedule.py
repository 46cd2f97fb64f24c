"""Which trial comes when: within the time allowed, and no trial twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean

from benchmarks.tuning.choice import Measured
from benchmarks.tuning.journal import Journal
from benchmarks.tuning.testbed import Testbed
from benchmarks.tuning.trial import Trial
from serving.configuration import Configuration

ROUNDS = 3
LEAST_ROUNDS = 2
"""One round would not tell a gain from noise."""
USUAL_NEIGHBOURS = 8
LISTED = 3


@dataclass(kw_only=True)
class Schedule:
    """Args:
    journal: holds trials of the search that need not be made again; their time counts as if they were, so that a tuning that
        was interrupted comes to what it would have come to.
    minutes: for all trials together.
    latency_p99_ms: what is allowed, ms; None for any.
    finalists: how many configurations the final has room for, besides the default.
    say: told a line a trial.
    begin: told the number of the trial that begins, of about how many, and what is tried.
    trials: made so far, in order.
    """

    testbed: Testbed
    journal: Journal
    minutes: float
    latency_p99_ms: float | None
    finalists: int
    say: Callable[[str], None]
    begin: Callable[[int, int, str], None]
    trials: list[Trial] = field(default_factory=list)
    _left_out: list[Configuration] = field(default_factory=list)

    def search(self, configurations: Sequence[Configuration]) -> None:
        """Try each that was not tried yet, for as long as time is left for the final."""
        tried = {trial.configuration for trial in self.trials}
        waiting = [configuration for configuration in configurations if configuration not in tried]
        for index, configuration in enumerate(waiting):
            if self.trials and not self._in_time(1 + ROUNDS * (self.finalists + 1)):
                self._left_out += [one for one in waiting[index:] if one not in self._left_out]
                return
            about = len(self.trials) + len(waiting) - index + USUAL_NEIGHBOURS + ROUNDS * (self.finalists + 1)
            self._try(configuration, 0, min(about, max(len(self.trials) + 1, self._affordable())))

    def final(self, configurations: Sequence[Configuration]) -> None:
        """Try each in every round, every other round in reverse. There are fewer rounds where time is short."""
        fitting = self._affordable() - len(self.trials)
        rounds = min(ROUNDS, max(LEAST_ROUNDS, fitting // len(configurations)))
        if rounds < ROUNDS:
            self.say(f"{rounds} rounds in the final instead of {ROUNDS}: more --minutes would be needed")
        about = len(self.trials) + rounds * len(configurations)
        for number in range(1, rounds + 1):
            for configuration in configurations if number % 2 else reversed(configurations):
                self._try(configuration, number, about)

    def tell_left_out(self) -> None:
        """Say what there was no time for."""
        if self._left_out:
            named = "; ".join(map(str, self._left_out[:LISTED]))
            more = f" and {len(self._left_out) - LISTED} more" if len(self._left_out) > LISTED else ""
            self.say(f"left out, as {self.minutes:g} minutes are too few: {named}{more}")

    def _try(self, configuration: Configuration, number: int, about: int) -> None:
        count = len(self.trials) + 1
        self.begin(count, about, str(configuration))
        trial = self.journal.taken(configuration) if number == 0 else None
        if trial is None:
            trial = self.testbed.measure(configuration, number)
            self.journal.add(trial)
            self.say(f"trial {count} of about {about}: {configuration}: {self._found(trial)}")
        self.trials.append(trial)

    def _in_time(self, more: int) -> bool:
        return len(self.trials) + more <= self._affordable()

    def _affordable(self) -> int:
        """How many trials there is time for, those that were made included."""
        seconds = [trial.seconds for trial in self.trials if trial.failure is None]
        usual = mean(seconds) if seconds else self.testbed.expected_seconds()
        left = 60 * self.minutes - sum(trial.seconds for trial in self.trials)
        return len(self.trials) + int(left // usual)

    def _found(self, trial: Trial) -> str:
        if trial.failure is not None:
            return f"failed: {trial.failure}"
        measured = Measured(configuration=trial.configuration, trials=[trial], latency_p99_ms=self.latency_p99_ms)
        return f"{measured.shown}{'' if measured.best else ', too slow'}"
