"""Speeds of two reports, each beside the PyTorch original that was timed in the same rounds. Why: see :mod:`benchmarks.compare`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, expm1, inf, isfinite, log, log1p

import numpy as np

from benchmarks.noise import BETWEEN_RUNS, CHANCE, Levels, Numbers, Shift, shifts, weigh_rounds
from benchmarks.report import Report
from benchmarks.verdicts import Comparison

SPEEDS = {"throughput": 1, "p50_ms": -1, "p90_ms": -1, "p95_ms": -1, "p99_ms": -1}
"""Figures that the rounds repeat: 1 where higher is better, −1 where lower is."""
YARDSTICK = ("pytorch", "pipeline")
"""Kinds of models that no change of a bundle or of the server touches."""
OPEN_LOOP = "an open loop: its latency follows the machine's speed by multiples"
NOT_REPEATED = "not measured in every round"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of speed that both reports have.

    Args:
        unjudged: why it is not judged, empty where it is.
    """

    name: str
    model: str
    kind: str
    before: float
    now: float
    unjudged: str = ""

    @property
    def plainly(self) -> float:
        """The change as a level: a logarithm, above zero where it is better."""
        return SPEEDS[self.kind] * log(self.now / self.before)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Figures as levels (logarithms, the higher the better) less the yardstick's; ``yardsticks`` models stood beside each."""

    figures: list[Figure]
    levels: Levels
    yardsticks: list[int]

    def shift(self, weights: Levels) -> Shift:
        """By how much they changed."""
        # no round shows how a model settled in its run, nor how those of the yardstick did
        unseen = [2 * BETWEEN_RUNS**2 * (1 + (1 / count if count else 0)) for count in self.yardsticks]
        kinds = [figure.kind for figure in self.figures]
        return shifts(self.levels, weights, kinds=kinds, between_runs=np.array(unseen), chance=CHANCE / 2)


def compare_speeds(before: Report, now: Report, *, allowed: float, plainly_too: bool) -> tuple[list[Comparison], list[str]]:
    """Throughputs and percentiles of every model as a whole and of each arrangement and load that both reports have, and notes.

    Args:
        allowed: how much worse a figure may be in any case, relative.
        plainly_too: worse is only what is worse without the yardstick as well.
    """
    found = list(_shared(before, now))
    judged = [figure for figure in found if not figure.unjudged]
    compared, notes = [], []
    if judged:
        singles = _beside(before, now, judged)
        weights = weigh_rounds(singles.levels)
        shift = singles.shift(weights)
        wholes = _wholes(singles, shift)
        for some, by in ((wholes, wholes.shift(weights)), (singles, shift)):
            compared += [_verdict(some, by, index, allowed, plainly_too) for index in range(len(some.figures))]
        alone = sorted({figure.model for figure, count in zip(judged, singles.yardsticks, strict=True) if not count})
        if alone:
            notes = [f"no yardstick beside {', '.join(alone)}: compared plainly, so a slower machine looks like a slower build"]
    return compared + [_not_compared(figure) for figure in found if figure.unjudged], notes


def _shared(before: Report, now: Report) -> Iterator[Figure]:
    ours, theirs = before.figures(), now.figures()
    loads = [load for report in (before, now) if report.served for load in report.served.loads]
    opened = {load.name for load in loads if load.concurrency is None}
    for way, model in ways(before).items():
        for kind in SPEEDS:
            name = f"{way}.{kind}"
            if name not in theirs:
                continue
            repeated = all(own.get(name, 0.0) > 0 and isfinite(own[name]) for report in (before, now) for own in report.rounds)
            is_open = way.removeprefix(f"{model}.") in opened
            unjudged = OPEN_LOOP if is_open else "" if repeated and before.rounds and now.rounds else NOT_REPEATED
            yield Figure(name=name, model=model, kind=kind, before=ours[name], now=theirs[name], unjudged=unjudged)


def ways(report: Report) -> dict[str, str]:
    """Every arrangement and load → its model, by name."""
    found = {f"{model.name}.{name}": model.name for model in report.in_process for name in model.arrangements}
    if report.served is not None:
        found |= {f"{report.served.name}.{load.name}": report.served.name for load in report.served.loads}
    return found


def _beside(before: Report, now: Report, figures: list[Figure]) -> Beside:
    yardsticks = {model: _yardstick(before, now, figures, without=model) for model in {figure.model for figure in figures}}

    def side(report: Report, at: int) -> Numbers:
        means = {model: np.mean([one[at] for one in found], axis=0) if found else 0.0 for model, found in yardsticks.items()}
        return np.array([_levels(report, figure) - means[figure.model] for figure in figures])

    counts = [len(yardsticks[figure.model]) for figure in figures]
    return Beside(figures=figures, levels=Levels(before=side(before, 0), now=side(now, 1)), yardsticks=counts)


def _yardstick(before: Report, now: Report, figures: list[Figure], without: str) -> list[tuple[Numbers, Numbers]]:
    """Round by round, before and now, the mean level of every model of the yardstick but the one that is held against it."""
    found = []
    for model in before.in_process:
        real = {f"{model.name}.{name}.throughput" for name in model.on_real_rows}
        shared = [figure for figure in figures if figure.name in real]
        if model.kind in YARDSTICK and model.name != without and shared:
            found.append(
                (np.mean([_levels(before, one) for one in shared], axis=0), np.mean([_levels(now, one) for one in shared], axis=0))
            )
    return found


def _levels(report: Report, figure: Figure) -> Numbers:
    levels: Numbers = SPEEDS[figure.kind] * np.log([own[figure.name] for own in report.rounds])
    return levels


def _wholes(singles: Beside, shift: Shift) -> Beside:
    """The throughput of each model that has several: their mean, each weighing as the inverse of its variance."""
    figures, before, now, counts = [], [], [], []
    for model in dict.fromkeys(figure.model for figure in singles.figures):
        own = [at for at, one in enumerate(singles.figures) if one.model == model and one.kind == "throughput"]
        if len(own) < 2:
            continue
        weights = 1 / np.maximum(shift.variance[own], 1e-12)
        sides = [
            exp(np.average(np.log([getattr(singles.figures[at], side) for at in own]), weights=weights))
            for side in ("before", "now")
        ]
        figures.append(Figure(name=f"{model}.*.throughput", model=model, kind="throughput", before=sides[0], now=sides[1]))
        before.append(np.average(singles.levels.before[own], axis=0, weights=weights))
        now.append(np.average(singles.levels.now[own], axis=0, weights=weights))
        counts.append(singles.yardsticks[own[0]])
    return Beside(figures=figures, levels=Levels(before=np.array(before), now=np.array(now)), yardsticks=counts)


def _verdict(some: Beside, shift: Shift, at: int, allowed: float, plainly_too: bool) -> Comparison:
    figure, sign = some.figures[at], SPEEDS[some.figures[at].kind]
    by, error = float(shift.by[at]), float(shift.error[at])
    spared = inf if sign > 0 and allowed >= 1 else -log1p(-allowed) if sign > 0 else log1p(allowed)
    reach = max(float(shift.reach[at]), spared)
    low, high = (min(by, figure.plainly), max(by, figure.plainly)) if plainly_too else (by, by)
    verdict = "worse" if high < -reach else "better" if low > reach else "same"
    return Comparison(
        figure=figure.name,
        before=figure.before,
        now=figure.now,
        change=figure.now / figure.before - 1,
        against_yardstick=expm1(sign * by) if some.yardsticks[at] else None,
        tolerance=abs(expm1(-sign * reach)),
        noise=expm1(error),
        verdict=verdict,
    )


def _not_compared(figure: Figure) -> Comparison:
    change = figure.now / figure.before - 1
    return Comparison(
        figure=figure.name, before=figure.before, now=figure.now, change=change, verdict="not compared", why=figure.unjudged
    )
