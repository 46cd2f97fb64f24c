"""Results of a report: which gates passed, and how its figures compare with an earlier report's."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log1p
from typing import Annotated

from pydantic import AliasChoices, Field, NonNegativeInt, PositiveInt


def relative(before: float, now: float) -> float | None:
    """Compute the change as a share of ``before``; None if that is zero."""
    return now / before - 1 if before else None


def percent(share: float) -> str:
    """Write a share such as ``26 %``, with two digits below ten percent."""
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.2g} %"


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A value on the wrong side of its limit."""

    value: float
    limit: float

    def __str__(self) -> str:
        """Write ``26 % short`` of the limit or ``8 % over`` it; in the figure's own unit if the limit is zero."""
        if self.value == self.limit:
            return "no more than equal"
        side = "short" if self.value < self.limit else "over"
        by = abs(self.value - self.limit)
        return f"{by:.4g} {side}" if self.limit == 0 else f"{percent(by / abs(self.limit))} {side}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkGate:
    """A gate, evaluated in every round.

    Attributes:
        comparison: The values of its sides, each the median of the rounds; empty if it could not be evaluated.
        held: Number of rounds in which it held.
        passed: Whether it held in more than half of the rounds. The comparison of the medians may differ.
        missed: By how much the medians miss it, in a chain the largest miss; None if they hold, or the gate passed.
        why: Why it could not be evaluated and therefore failed; empty if it was evaluated.
    """

    expression: str
    comparison: str
    held: NonNegativeInt
    rounds: PositiveInt
    passed: bool
    missed: Miss | None = None
    why: str = ""

    def __str__(self) -> str:
        """Describe the result in one line."""
        if self.why:
            return self.why
        result = f"{self.comparison}, in {self.held} of {self.rounds} rounds"
        if self.passed:
            return result
        return f"{result}, {'though the medians hold' if self.missed is None else self.missed}"


VERDICTS = ("worse", "better", "same", "not compared")


@dataclass(frozen=True, kw_only=True)
class FigureComparison:
    """A figure compared with the baseline's.

    Attributes:
        change: Relative change, −0.2 is 20 % less; with ``points`` the difference itself, −0.002 is 0.2 points less; None if the
            value before was zero.
        points: Whether the change is a difference in percentage points.
        against_reference: Change of a speed relative to the reference, which excludes the machine's own change; None for other
            figures, and without a reference. If present, the verdict is about it.
        tolerance: How much worse it may be, in the unit of the change; None if it was not compared, or there is no such change.
        noise: Standard error of the change; None if nothing repeats the figure.
        verdict: One of :data:`VERDICTS`.
    """

    figure: str
    before: float
    now: float
    change: float | None
    points: bool = False
    against_reference: Annotated[float | None, Field(validation_alias=AliasChoices("against_reference", "against_yardstick"))] = (
        None
    )
    tolerance: float | None = None
    noise: float | None = None
    verdict: str
    why: str = ""

    @property
    def size(self) -> float:
        """Size of the change that the verdict is about: half as much is as large as twice as much."""
        change = self.change if self.against_reference is None else self.against_reference
        return abs(log1p(change)) if change is not None and change > -1 else inf

    @property
    def absolute(self) -> str:
        """The absolute change as text."""
        if self.change is None:
            return "from nothing"
        return f"{100 * self.change:+.2f} points" if self.points else f"{self.change:+.1%}"

    @property
    def description(self) -> str:
        """The absolute change and the change relative to the reference as text."""
        if self.against_reference is None:
            return self.absolute
        return f"{self.absolute}, {self.against_reference:+.1%} relative to the reference"

    @property
    def limits(self) -> str:
        """Tolerance and noise as text."""
        allowed = "" if self.tolerance is None else f"{percent(self.tolerance)} allowed"
        if self.points and self.tolerance is not None:
            allowed = f"{100 * self.tolerance:g} points allowed"
        return allowed + ("" if self.noise is None else f", noise ±{percent(self.noise)}")

    def __str__(self) -> str:
        """Describe the comparison in one line."""
        limits = f"; {self.limits}" if self.limits else ""
        text = f"{self.figure} went from {self.before:.4g} to {self.now:.4g} ({self.description}{limits})"
        return f"{text}: {self.why}" if self.why else text


@dataclass(frozen=True, kw_only=True)
class ReportComparison:
    """A report compared with an earlier one, see :mod:`benchmarks.comparing.compare`.

    Attributes:
        before: The earlier report: its model, time and commit.
        notes: Differences between the two runs that limit the comparison.
    """

    before: str
    now: str
    figures: list[FigureComparison]
    notes: list[str]
    only_before: list[str]
    only_now: list[str]

    def of(self, verdict: str) -> list[FigureComparison]:
        """Select the figures with this verdict: models as a whole first, then by size of the change."""
        found = [one for one in self.figures if one.verdict == verdict]
        return sorted(found, key=lambda one: (".*." not in one.figure, -one.size))

    @property
    def summary(self) -> str:
        """Number of figures by verdict."""
        counts = [(len(self.of(verdict)), verdict) for verdict in VERDICTS]
        return ", ".join(f"{count} {verdict}" for count, verdict in counts if count) or "no figure in common"

    @property
    def remarks(self) -> list[str]:
        """The notes, and what only one of the reports has."""
        lacking = [("before", self.only_before), ("now", self.only_now)]
        return [*self.notes, *(f"only {when}: {', '.join(names)}" for when, names in lacking if names)]
