"""Speeds of two reports, each relative to the PyTorch original that was timed in the same rounds.

For the reasons see :mod:`benchmarks.comparing.compare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, expm1, inf, isfinite, log, log1p

import numpy as np

from benchmarks.comparing.comparability import same_timed_rows
from benchmarks.comparing.measurement_noise import BETWEEN_RUNS, CHANCE, Levels, Numbers, Shift, shifts, weigh_rounds
from benchmarks.measurements import Load
from benchmarks.report import Report
from benchmarks.verdicts import FigureComparison, relative

SPEEDS = {"throughput": 1, "p50_ms": -1, "p90_ms": -1, "p95_ms": -1, "p99_ms": -1}
"""Figures that every round repeats: 1 if higher is better, −1 if lower is better."""
WAITS = dict.fromkeys(("ttft_p50_ms", "ttft_p99_ms", "itl_mean_ms", "itl_p50_ms", "itl_p99_ms"), -1)
"""The same of models that generate. Their tokens per second are their throughput, as all answers have the same length."""
REPEATED = SPEEDS | WAITS
REFERENCE = ("pytorch", "pipeline")
"""Kinds of models that no change of a bundle or of the server affects."""
SLOW = 2.5
"""An original that is so many times slower than at its best in either report shows what disturbs it, not the machine's speed."""
ABSOLUTE_TOO = "the absolute change must exceed the noise too; measure again on a machine that is less busy"
WORTH_NOTING = 0.05
RUNTIMES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt")
OPEN_LOOP = "an open loop: its latency changes by multiples of the machine's speed"
MEMBER = "part of the reference"
NOT_REPEATED = "not measured in every round"
OTHER_ROWS = "on other rows"


@dataclass(frozen=True, kw_only=True)
class SpeedFigure:
    """A figure of speed that both reports have.

    Attributes:
        kind: A key of :data:`REPEATED`.
        excluded: Why it is not compared; empty if it is.
    """

    name: str
    model: str
    kind: str
    before: float
    now: float
    excluded: str = ""

    @property
    def absolute(self) -> float:
        """The change as a logarithm, positive if it is better."""
        return REPEATED[self.kind] * log(self.now / self.before)

    def levels(self, report: Report) -> Numbers:
        """Logarithms of the figure in each round, higher is better, ``[rounds]``."""
        levels: Numbers = REPEATED[self.kind] * np.log([own[self.name] for own in report.rounds])
        return levels


@dataclass(frozen=True, kw_only=True)
class Relative:
    """Figures relative to the reference.

    Attributes:
        levels: Their logarithms, higher is better, minus those of the reference, ``[figures, rounds]``.
        references: Number of models in the reference of each figure.
    """

    figures: list[SpeedFigure]
    levels: Levels
    references: list[int]

    def only(self, figures: list[SpeedFigure]) -> Relative:
        """Select figures."""
        at = [index for index, one in enumerate(self.figures) if one in figures]
        levels = Levels(before=self.levels.before[at], now=self.levels.now[at])
        return Relative(figures=[self.figures[one] for one in at], levels=levels, references=[self.references[one] for one in at])

    def shift(self, weights: Levels) -> Shift:
        """Compute by how much they changed."""
        # no round shows the variation between runs, neither a model's own nor that of the reference's models
        unseen = [2 * BETWEEN_RUNS**2 * (1 + (1 / count if count else 0)) for count in self.references]
        kinds = [figure.kind for figure in self.figures]
        return shifts(self.levels, weights, kinds=kinds, between_runs=np.array(unseen), chance=CHANCE / 2)


def compare_speeds(
    before: Report, now: Report, *, tolerance: float, absolute_too: bool
) -> tuple[list[FigureComparison], list[str]]:
    """Compare throughputs and percentiles of every model as a whole, and of each arrangement and load that both reports have.

    A figure may be worse by ``tolerance``, relative, whatever the noise; with ``absolute_too``, the absolute change must exceed the
    noise too. The second value is notes about the comparison.
    """
    found = list(_shared(before, now))
    members = _originals(before)
    compared = [one for one in found if not one.excluded and one.model not in members]
    listed = [_not_compared(one) for one in found if one not in compared]
    if not compared:
        return listed, []
    machine, notes = _machine(before, now, [one for one in found if not one.excluded and one.model in members])
    singles = _relative(before, now, [one for one in found if not one.excluded])
    weights = weigh_rounds(singles.levels)
    steady = weights if machine is None else _without_slow(weights, machine)
    if steady is None:
        notes.append(f"in most rounds of a run PyTorch was {SLOW:g} times slower than at its best, or more: {ABSOLUTE_TOO}")
    weights, both = steady or weights, absolute_too or steady is None
    singles = singles.only(compared)
    shift = singles.shift(weights)
    sides = [(singles, shift)]
    wholes = _wholes(singles, shift)
    if wholes.figures:  # a model with one figure of throughput is already compared as a whole
        sides.insert(0, (wholes, wholes.shift(weights)))
    return [_compared(some, by, at, tolerance, both) for some, by in sides for at in range(len(some.figures))] + listed, notes


def _machine(before: Report, now: Report, members: list[SpeedFigure]) -> tuple[Levels | None, list[str]]:
    """Mean level of the originals' throughputs by round, and a note about its change."""
    own = [one for one in members if one.kind == "throughput"]
    if not own:
        return None, ["no reference: absolute speeds are compared, so a slower machine looks like a slower build"]
    sides = [np.mean([one.levels(report) for one in own], axis=0) for report in (before, now)]
    change = expm1(float(np.median(sides[1]) - np.median(sides[0])))
    notes = [f"PyTorch, which is the reference: {change:+.0%}"] if abs(change) >= WORTH_NOTING else []
    return Levels(before=sides[0], now=sides[1]), notes


def _without_slow(weights: Levels, machine: Levels) -> Levels | None:
    """``weights`` with zero for the rounds in which the originals were slow; None if that is at least half of a run.

    Processes of several threads that wait for each other lose far more speed on a busy core than processes of one thread, so that
    such a round says nothing about other models.
    """
    best = max(machine.before.max(), machine.now.max())
    kept = [
        np.where(best - level <= log(SLOW), weight, 0.0)
        for level, weight in ((machine.before, weights.before), (machine.now, weights.now))
    ]
    if any((2 * np.count_nonzero(weight) <= len(weight)) for weight in kept):
        return None
    return Levels(before=kept[0], now=kept[1])


def _shared(before: Report, now: Report) -> Iterator[SpeedFigure]:
    ours, theirs = before.figures(), now.figures()
    for way, measured in before.measured():
        same_rows = same_timed_rows(before, now, measured.length)
        is_open = isinstance(measured, Load) and measured.concurrency is None
        for kind in REPEATED:
            name = f"{way}.{kind}"
            if name not in theirs:
                continue
            found = [ours, theirs, *before.rounds, *now.rounds]
            repeated = all(own.get(name, 0.0) > 0 and isfinite(own[name]) for own in found) and before.rounds and now.rounds
            excluded = OPEN_LOOP if is_open else OTHER_ROWS if not same_rows else "" if repeated else NOT_REPEATED
            model = ".".join(way.split(".")[:2])
            yield SpeedFigure(name=name, model=model, kind=kind, before=ours[name], now=theirs[name], excluded=excluded)


def _relative(before: Report, now: Report, figures: list[SpeedFigure]) -> Relative:
    references = {model: _reference(before, now, figures, without=model) for model in {figure.model for figure in figures}}

    def side(report: Report, at: int) -> Numbers:
        means = {model: np.mean([one[at] for one in found], axis=0) if found else 0.0 for model, found in references.items()}
        return np.array([figure.levels(report) - means[figure.model] for figure in figures])

    counts = [len(references[figure.model]) for figure in figures]
    return Relative(figures=figures, levels=Levels(before=side(before, 0), now=side(now, 1)), references=counts)


def _reference(before: Report, now: Report, figures: list[SpeedFigure], without: str) -> list[tuple[Numbers, Numbers]]:
    """Mean level by round, before and now, of every model of the reference except ``without``, which is compared with it."""
    served = before.served is not None and before.served.name == without
    members = _originals(before) | (_unchanged(before, now) if served else set())
    found = []
    for model in before.in_process:
        real = {f"{model.name}.{one.name}.throughput" for one in model.on_real_rows}
        shared = [figure for figure in figures if figure.name in real]
        if model.name in members - {without} and shared:
            sides = [np.mean([one.levels(report) for one in shared], axis=0) for report in (before, now)]
            found.append((sides[0], sides[1]))
    return found


def _originals(report: Report) -> set[str]:
    return {model.name for model in report.in_process if model.kind in REFERENCE}


def _unchanged(before: Report, now: Report) -> set[str]:
    """In-process models on the originals' device whose file and runtime are the same in both reports.

    If only the served model got slower, they did not.
    """
    ours, theirs = before.environment.versions, now.environment.versions
    if any(ours.get(runtime) != theirs.get(runtime) for runtime in RUNTIMES):
        return set()
    devices = {model.device for model in before.in_process if model.kind in REFERENCE}
    files = {model.name: model.sha256 for model in now.in_process}
    return {model.name for model in before.in_process if model.device in devices and files.get(model.name) == model.sha256}


def _wholes(singles: Relative, shift: Shift) -> Relative:
    """The throughput of each model that has several: their mean, weighted by the inverse of their variance."""
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
        figures.append(SpeedFigure(name=f"{model}.*.throughput", model=model, kind="throughput", before=sides[0], now=sides[1]))
        before.append(np.average(singles.levels.before[own], axis=0, weights=weights))
        now.append(np.average(singles.levels.now[own], axis=0, weights=weights))
        counts.append(singles.references[own[0]])
    return Relative(figures=figures, levels=Levels(before=np.array(before), now=np.array(now)), references=counts)


def _compared(some: Relative, shift: Shift, at: int, tolerance: float, absolute_too: bool) -> FigureComparison:
    figure, sign = some.figures[at], REPEATED[some.figures[at].kind]
    by, error = float(shift.by[at]), float(shift.error[at])
    spared = inf if sign > 0 and tolerance >= 1 else -log1p(-tolerance) if sign > 0 else log1p(tolerance)
    reach = max(float(shift.reach[at]), spared)
    # a figure that did not move is not worse because the reference recovered, and not better because it got slower
    least = reach if absolute_too else spared
    worse, better = by < -reach and figure.absolute < -least, by > reach and figure.absolute > least
    return FigureComparison(
        figure=figure.name,
        before=figure.before,
        now=figure.now,
        change=figure.now / figure.before - 1,
        against_reference=expm1(sign * by) if some.references[at] else None,
        tolerance=abs(expm1(-sign * reach)),
        noise=expm1(error),
        verdict="worse" if worse else "better" if better else "same",
    )


def _not_compared(figure: SpeedFigure) -> FigureComparison:
    return FigureComparison(
        figure=figure.name,
        before=figure.before,
        now=figure.now,
        change=relative(figure.before, figure.now),
        verdict="not compared",
        why=figure.excluded or MEMBER,
    )
