"""What a report comes to: gates that held or not, and how its figures compare with an earlier report's."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log1p


def relative(before: float, now: float) -> float | None:
    """The change as a share of ``before``; None where that is zero."""
    return now / before - 1 if before else None


def percent(share: float) -> str:
    """``26 %``, and two digits of what is less than ten."""
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.2g} %"


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A value, and the limit on whose wrong side it is."""

    value: float
    limit: float

    def __str__(self) -> str:
        """``26 % short`` of the limit or ``8 % over`` it; in the figure's own unit where the limit is zero."""
        if self.value == self.limit:
            return "no more than equal"
        side = "short" if self.value < self.limit else "over"
        by = abs(self.value - self.limit)
        return f"{by:.4g} {side}" if self.limit == 0 else f"{percent(by / abs(self.limit))} {side}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkGate:
    """A gate that was checked in every round.

    Args:
        comparison: what its sides came to, each the median of the rounds.
        held: in how many of the ``rounds`` it held.
        passed: whether these are more than half. The comparison of the medians need not say the same.
        missed: by how much the medians miss it, in a chain where they do most; None where they hold, or the gate passed.
        why: it could not be checked and so did not pass; empty where it was. There is no comparison then.
    """

    expression: str
    comparison: str
    held: int
    rounds: int
    passed: bool
    missed: Miss | None = None
    why: str = ""

    def __str__(self) -> str:
        if self.why:
            return self.why
        told = f"{self.comparison}, in {self.held} of {self.rounds} rounds"
        if self.passed:
            return told
        return f"{told}, {'though the medians hold' if self.missed is None else self.missed}"


VERDICTS = ("worse", "better", "same", "not compared")


@dataclass(frozen=True, kw_only=True)
class FigureComparison:
    """A figure held against the baseline's.

    Args:
        change: relative, −0.2 is 20 % less; with ``points`` the difference itself, −0.002 is 0.2 points less; None where there
            was nothing before that it could be a share of.
        against_reference: change of a speed beside the yardstick's, which is what the machine's own speed leaves of it; None for
            other figures, and where there was no yardstick. Where it is there, the verdict is about it.
        tolerance: how much worse it may be, as the change is told; None where it was not compared, or there is no such change.
        noise: standard error of the change; None where nothing repeats it.
        verdict: one of :data:`VERDICTS`.
        why: it was not compared.
    """

    figure: str
    before: float
    now: float
    change: float | None
    points: bool = False
    against_reference: float | None = None
    tolerance: float | None = None
    noise: float | None = None
    verdict: str
    why: str = ""

    @property
    def counted(self) -> float | None:
        """The change that the verdict is about."""
        return self.change if self.against_reference is None else self.against_reference

    @property
    def size(self) -> float:
        """How large that is: half as much is as large as twice as much."""
        return abs(log1p(self.counted)) if self.counted is not None and self.counted > -1 else inf

    @property
    def plainly(self) -> str:
        """The change itself, in words."""
        if self.change is None:
            return "from nothing"
        return f"{100 * self.change:+.2f} points" if self.points else f"{self.change:+.1%}"

    @property
    def told(self) -> str:
        """The change, in words, and what it is beside the yardstick."""
        return self.plainly + ("" if self.against_reference is None else f", {self.against_reference:+.1%} beside the yardstick")

    @property
    def limits(self) -> str:
        """The tolerance and the noise, in words."""
        allowed = "" if self.tolerance is None else f"{percent(self.tolerance)} allowed"
        if self.points and self.tolerance is not None:
            allowed = f"{100 * self.tolerance:g} points allowed"
        return allowed + ("" if self.noise is None else f", noise ±{percent(self.noise)}")

    def __str__(self) -> str:
        told = (
            f"{self.figure} went from {self.before:.4g} to {self.now:.4g} ({self.told}{f'; {self.limits}' if self.limits else ''})"
        )
        return f"{told}: {self.why}" if self.why else told


@dataclass(frozen=True, kw_only=True)
class ReportComparison:
    """A report held against an earlier one, see :mod:`benchmarks.comparing.compare`.

    Args:
        before, now: which report: its model, when and at which commit it was made.
        figures: every figure that both have.
        notes: what keeps the two from being alike.
        only_before, only_now: figures that one of them lacks.
    """

    before: str
    now: str
    figures: list[FigureComparison]
    notes: list[str]
    only_before: list[str]
    only_now: list[str]

    def of(self, verdict: str) -> list[FigureComparison]:
        """The figures with this verdict: of models as a whole, then those that changed most."""
        found = [one for one in self.figures if one.verdict == verdict]
        return sorted(found, key=lambda one: (".*." not in one.figure, -one.size))

    @property
    def summary(self) -> str:
        """How many figures have which verdict."""
        counts = [(len(self.of(verdict)), verdict) for verdict in VERDICTS]
        return ", ".join(f"{count} {verdict}" for count, verdict in counts if count) or "no figure in common"

    @property
    def remarks(self) -> list[str]:
        """The notes, and what only one of the reports has."""
        lacking = [("before", self.only_before), ("now", self.only_now)]
        return [*self.notes, *(f"only {when}: {', '.join(names)}" for when, names in lacking if names)]
