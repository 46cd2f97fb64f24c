"""Speeds of two reports, each beside the PyTorch original that was timed in the same rounds.

Why: see :mod:`benchmarks.comparing.compare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, expm1, inf, isfinite, log, log1p

import numpy as np

from benchmarks.comparing.comparability import same_timed_rows
from benchmarks.comparing.measurement_noise import BETWEEN_RUNS, CHANCE, Levels, Numbers, Shift, shifts, weigh_rounds
from benchmarks.report import Report
from benchmarks.verdicts import FigureComparison, relative

SPEEDS = {"throughput": 1, "p50_ms": -1, "p90_ms": -1, "p95_ms": -1, "p99_ms": -1}
"""Figures that the rounds repeat: 1 where higher is better, −1 where lower is."""
YARDSTICK = ("pytorch", "pipeline")
"""Kinds of models that no change of a bundle or of the server touches."""
SLOW = 2.5
"""Times as slow as at their best in either report, from which on the originals measure what keeps them, not the machine."""
BOTH = "worse is what is so beside it and plainly, beyond noise; measure again on a machine that is less busy"
WORTH_SAYING = 0.05
RUNTIMES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt")
OPEN_LOOP = "an open loop: its latency follows the machine's speed by multiples"
MEMBER = "of the yardstick itself"
NOT_REPEATED = "not measured in every round"
OTHER_ROWS = "on other rows"


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

    def only(self, figures: list[Figure]) -> Beside:
        """Those of ``figures``."""
        at = [index for index, one in enumerate(self.figures) if one in figures]
        levels = Levels(before=self.levels.before[at], now=self.levels.now[at])
        return Beside(figures=[self.figures[one] for one in at], levels=levels, yardsticks=[self.yardsticks[one] for one in at])

    def shift(self, weights: Levels) -> Shift:
        """By how much they changed."""
        # no round shows how a model settled in its run, nor how those of the yardstick did
        unseen = [2 * BETWEEN_RUNS**2 * (1 + (1 / count if count else 0)) for count in self.yardsticks]
        kinds = [figure.kind for figure in self.figures]
        return shifts(self.levels, weights, kinds=kinds, between_runs=np.array(unseen), chance=CHANCE / 2)


def compare_speeds(before: Report, now: Report, *, allowed: float, plainly_too: bool) -> tuple[list[FigureComparison], list[str]]:
    """Throughputs and percentiles of every model as a whole and of each arrangement and load that both reports have, and notes.

    Args:
        allowed: how much worse a figure may be in any case, relative.
        plainly_too: worse is only what is so without the yardstick as well.
    """
    found = list(_shared(before, now))
    members = _originals(before)
    judged = [one for one in found if not one.unjudged and one.model not in members]
    shown = [_not_compared(one) for one in found if one not in judged]
    if not judged:
        return shown, []
    machine, notes = _machine(before, now, [one for one in found if not one.unjudged and one.model in members])
    singles = _beside(before, now, [one for one in found if not one.unjudged])
    weights = weigh_rounds(singles.levels)
    steady = weights if machine is None else _without_slow(weights, machine)
    if steady is None:
        notes.append(f"in most rounds of a run PyTorch was {SLOW:g} times slower than at its best, or more: {BOTH}")
    weights, both = steady or weights, plainly_too or steady is None
    singles = singles.only(judged)
    shift = singles.shift(weights)
    sides = [(singles, shift)]
    wholes = _wholes(singles, shift)
    if wholes.figures:  # a model with one figure of throughput is as a whole what that is
        sides.insert(0, (wholes, wholes.shift(weights)))
    compared = [_verdict(some, by, at, allowed, both) for some, by in sides for at in range(len(some.figures))]
    return compared + shown, notes


def _machine(before: Report, now: Report, members: list[Figure]) -> tuple[Levels | None, list[str]]:
    """Round by round the mean level of the originals' throughputs, and what to say about it."""
    own = [one for one in members if one.kind == "throughput"]
    if not own:
        return None, ["no yardstick: compared plainly, so a slower machine looks like a slower build"]
    sides = [np.mean([_levels(report, one) for one in own], axis=0) for report in (before, now)]
    change = expm1(float(np.median(sides[1]) - np.median(sides[0])))
    said = [f"PyTorch, which is the yardstick: {change:+.0%}"] if abs(change) >= WORTH_SAYING else []
    return Levels(before=sides[0], now=sides[1]), said


def _without_slow(weights: Levels, machine: Levels) -> Levels | None:
    """``weights`` without the rounds in which the originals were so slow that they say nothing about others: processes of several
    threads that wait for each other suffer far more from a busy core than those of one. None where hardly a round would be left."""
    best = max(machine.before.max(), machine.now.max())
    kept = [np.where(best - level <= log(SLOW), weight, 0.0) for level, weight in
            ((machine.before, weights.before), (machine.now, weights.now))]  # fmt: skip
    if any((2 * np.count_nonzero(weight) <= len(weight)) for weight in kept):
        return None
    return Levels(before=kept[0], now=kept[1])


def _shared(before: Report, now: Report) -> Iterator[Figure]:
    ours, theirs = before.figures(), now.figures()
    loads = [load for report in (before, now) if report.served for load in report.served.loads]
    opened = {load.name for load in loads if load.concurrency is None}
    lengths = lengths_of(before)
    for way, model in ways(before).items():
        same_rows = same_timed_rows(before, now, lengths[way])
        for kind in SPEEDS:
            name = f"{way}.{kind}"
            if name not in theirs:
                continue
            found = [ours, theirs, *before.rounds, *now.rounds]
            repeated = all(own.get(name, 0.0) > 0 and isfinite(own[name]) for own in found) and before.rounds and now.rounds
            is_open = way.removeprefix(f"{model}.") in opened
            unjudged = OPEN_LOOP if is_open else OTHER_ROWS if not same_rows else "" if repeated else NOT_REPEATED
            yield Figure(name=name, model=model, kind=kind, before=ours[name], now=theirs[name], unjudged=unjudged)


def ways(report: Report) -> dict[str, str]:
    """Every arrangement and load → its model, by name."""
    found = {f"{model.name}.{name}": model.name for model in report.in_process for name in model.arrangements}
    if report.served is not None:
        found |= {f"{report.served.name}.{load.name}": report.served.name for load in report.served.loads}
    return found


def lengths_of(report: Report) -> dict[str, int | None]:
    """Every arrangement and load → the tokens of its rows, None where they are as they are."""
    found = {f"{model.name}.{name}": one.length for model in report.in_process for name, one in model.arrangements.items()}
    if report.served is not None:
        found |= {f"{report.served.name}.{load.name}": load.length for load in report.served.loads}
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
    served = before.served is not None and before.served.name == without
    members = _originals(before) | (_unchanged(before, now) if served else set())
    found = []
    for model in before.in_process:
        real = {f"{model.name}.{name}.throughput" for name in model.on_real_rows}
        shared = [figure for figure in figures if figure.name in real]
        if model.name in members - {without} and shared:
            found.append(
                (np.mean([_levels(before, one) for one in shared], axis=0), np.mean([_levels(now, one) for one in shared], axis=0))
            )
    return found


def _originals(report: Report) -> set[str]:
    return {model.name for model in report.in_process if model.kind in YARDSTICK}


def _unchanged(before: Report, now: Report) -> set[str]:
    """Models in process, on the originals' device, whose file and runtime are the same in both reports: what is served got slower
    without them."""
    versions = [report.environment.get("versions", {}) for report in (before, now)]
    if any(versions[0].get(runtime) != versions[1].get(runtime) for runtime in RUNTIMES):
        return set()
    devices = {model.device for model in before.in_process if model.kind in YARDSTICK}
    files = {model.name: model.sha256 for model in now.in_process}
    return {model.name for model in before.in_process if model.device in devices and files.get(model.name) == model.sha256}


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


def _verdict(some: Beside, shift: Shift, at: int, allowed: float, plainly_too: bool) -> FigureComparison:
    figure, sign = some.figures[at], SPEEDS[some.figures[at].kind]
    by, error = float(shift.by[at]), float(shift.error[at])
    spared = inf if sign > 0 and allowed >= 1 else -log1p(-allowed) if sign > 0 else log1p(allowed)
    reach = max(float(shift.reach[at]), spared)
    # a figure that did not move is no worse for a yardstick that recovered, and no better for one that suffered
    plainly = reach if plainly_too else spared
    worse, better = by < -reach and figure.plainly < -plainly, by > reach and figure.plainly > plainly
    return FigureComparison(
        figure=figure.name,
        before=figure.before,
        now=figure.now,
        change=figure.now / figure.before - 1,
        against_reference=expm1(sign * by) if some.yardsticks[at] else None,
        tolerance=abs(expm1(-sign * reach)),
        noise=expm1(error),
        verdict="worse" if worse else "better" if better else "same",
    )


def _not_compared(figure: Figure) -> FigureComparison:
    return FigureComparison(
        figure=figure.name,
        before=figure.before,
        now=figure.now,
        change=relative(figure.before, figure.now),
        verdict="not compared",
        why=figure.unjudged or MEMBER,
    )
