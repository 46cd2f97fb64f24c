"""Compare two reports: list which figures became better or worse by more than measurement noise.

On a machine that other programs use too, two runs of the same build can differ by half. The comparison therefore works as follows:

* **Reference.** Speeds are compared relative to a reference that is timed in the same rounds: the PyTorch original and
  ``transformers.pipeline`` (geometric mean of their throughputs on real rows). No change of a bundle or of the server affects
  them, and a machine that is slower today slows all models. The served model is also compared with the in-process models whose
  files and runtimes are the same in both reports. The originals themselves are listed but not evaluated.
* **Worse** means worse relative to the reference by more than noise and tolerance, **and** worse in absolute terms by more than
  the tolerance: a figure that did not move is not worse because the reference recovered. Rounds in which the originals are much
  slower than at their best are ignored. If most rounds of a run are like that, or the originals run on other versions, the
  absolute change must exceed the noise too.
* **Noise** is estimated from the rounds of both reports (:mod:`benchmarks.comparing.measurement_noise`). A change counts only if
  it exceeds both the tolerance and the noise. A few seconds on a shared machine detect a change of 40 %, not of 10 %; longer
  ``--duration`` and more ``--rounds`` detect smaller ones, down to the variation between runs, which no round shows.
* **A model as a whole** has less noise than its single figures: ``served.int8.*.throughput`` is the geometric mean over its
  arrangements or closed loops, weighted by the inverse of their variance. It gets half of the accepted false alarm rate.
* **Speed and energy on other rows**, or on rows truncated at another length, are listed but not evaluated.
* **Open loops** are listed but not evaluated: near saturation, latency changes by multiples of the machine's speed.
* **Speeds of a run in which other processes or the host took more than 10 % of the processor time** are listed but not evaluated:
  processes that wait for each other, such as a server's, slow down far more than the reference.
* **Quality** is deterministic on the same labelled rows: it has a tolerance in percentage points and no noise.
* **Energy, memory and load time** are measured once, or together with whatever else runs: their tolerances are wide and fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.comparing.comparability import (
    differences,
    other_machine,
    other_yardstick,
    same_labelled_rows,
    same_timed_rows,
    taken_away,
    title,
)
from benchmarks.comparing.reference import OTHER_ROWS, SPEEDS, compare_speeds, lengths_of, ways
from benchmarks.report import Quality, Report
from benchmarks.verdicts import FigureComparison, ReportComparison, relative
from serving.errors import DataError

COSTS = {
    "joules_per_row": (0.5, 0.0),
    "load_seconds": (2.0, 5.0),
    "peak_rss_mib": (0.25, 64.0),
    "pss_mib": (0.25, 64.0),
    "gpu_memory_mib": (0.25, 64.0),
}
"""How much more is allowed, relative, and how much in any case, in the figure's unit."""


TIMED = (*SPEEDS, "joules_per_row", "load_seconds")
TAKEN = "others took the processor's time"
ROUNDING = 1e-9
"""A metric that dropped by just what is allowed has not dropped by more."""


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """How much worse a report may be.

    Args:
        regression: relative, for speeds.
        quality_drop: points, hundredths of a metric or of agreement.
        any_machine: judge speeds, memory and loading of another machine too, and of one that others used.
    """

    regression: float = 0.1
    quality_drop: float = 0.5
    any_machine: bool = False


def compare(before: Report, now: Report, allowed: Allowed) -> ReportComparison:
    """Hold ``now`` against ``before``.

    Raises:
        DataError: they have no figure in common.
    """
    elsewhere, versions = other_machine(before, now), other_yardstick(before, now)
    speeds, notes = compare_speeds(before, now, allowed=allowed.regression, plainly_too=bool(versions))
    found = [*speeds, *_costs(before, now)]
    if others := sum(one.why == OTHER_ROWS for one in found):
        notes.append(f"{others} figures of speed and energy are not compared: {OTHER_ROWS}")
    taken = taken_away(before, now)
    if taken and not allowed.any_machine:
        way_out = "measure again on a machine left alone, or judge them with --any-machine"
        notes.insert(0, f"others took the processor's time, {taken}: speeds are not judged; {way_out}")
        found = [_unjudged(one, TAKEN) if one.figure.rpartition(".")[2] in TIMED else one for one in found]
    elif taken:
        notes.insert(0, f"others took the processor's time, {taken}")
    if versions:
        notes.insert(0, f"the yardstick runs on other versions ({versions}): worse is what is worse beside it and plainly")
    if elsewhere and not allowed.any_machine:
        notes.insert(0, f"another machine: {elsewhere}; only quality is judged, --any-machine judges all")
        found = [_unjudged(one, "another machine") for one in found]
    elif elsewhere:
        notes.insert(0, f"another machine: {elsewhere}")
    quality, said = _qualities(before, now, allowed.quality_drop / 100)
    if not found and not quality:
        raise DataError(
            "the baseline has no figure in common with this run",
            hint="compare runs of the same precisions, protocols and concurrencies",
        )
    ours, theirs = _names(before), _names(now)
    return ReportComparison(
        before=title(before),
        now=title(now),
        figures=found + quality,
        notes=[*notes, *said, *differences(before, now)],
        only_before=_lacking(ours, theirs),
        only_now=_lacking(theirs, ours),
    )


def _unjudged(one: FigureComparison, why: str) -> FigureComparison:
    return replace(one, verdict="not compared", tolerance=None, noise=None, why=why)


def _costs(before: Report, now: Report) -> Iterator[FigureComparison]:
    ours, theirs, lengths = before.figures(), now.figures(), lengths_of(before)
    for name in _names(before):
        way, _, kind = name.rpartition(".")
        if kind not in COSTS or name not in ours or name not in theirs:
            continue
        share, least = COSTS[kind]
        was, is_now = ours[name], theirs[name]
        more, less = is_now - was > max(share * was, least), was - is_now > max(share * is_now, least)
        one = FigureComparison(
            figure=name,
            before=was,
            now=is_now,
            change=relative(was, is_now),
            tolerance=max(share, least / was) if was else None,
            verdict="worse" if more else "better" if less else "same",
        )
        if kind == "joules_per_row" and not same_timed_rows(before, now, lengths[way]):
            one = replace(one, verdict="not compared", tolerance=None, why=OTHER_ROWS)
        yield one


def _qualities(before: Report, now: Report, allowed: float) -> tuple[list[FigureComparison], list[str]]:
    """Metrics and agreement of every model, and what to say about them."""
    same = same_labelled_rows(before, now)
    why = {None: "the reports do not say on which rows", False: "on other labelled rows", True: ""}[same]
    ours, theirs = _judged(before), _judged(now)
    found = []
    for name in (name for name in ours if name in theirs):
        change = theirs[name] - ours[name]
        verdict = "worse" if change < -allowed - ROUNDING else "better" if change > allowed + ROUNDING else "same"
        one = FigureComparison(figure=name, before=ours[name], now=theirs[name], change=change, points=True, verdict=verdict)
        found.append(replace(one, verdict="not compared", why=why) if why else replace(one, tolerance=allowed))
    return found, [f"quality is not compared: {why}"] if why and found else []


def _judged(report: Report) -> dict[str, float]:
    qualities = {model.name: model.quality for model in report.in_process}
    if report.served is not None:
        qualities[report.served.name] = report.served.quality
    return {f"{name}.{figure}": value for name, quality in qualities.items() for figure, value in _figures(quality).items()}


def _figures(quality: Quality) -> dict[str, float]:
    return quality.metrics | {"agreement": quality.agreement}


def _names(report: Report) -> list[str]:
    """Figures that are compared where both reports have them."""
    own = [*ways(report), *([report.served.name] if report.served else [])]
    wanted = {f"{name}.{kind}" for name in own for kind in (*SPEEDS, *COSTS)}
    return [name for name in report.figures() if name in wanted] + list(_judged(report))


def _lacking(names: list[str], others: list[str]) -> list[str]:
    """Those of ``names`` that ``others`` lack; where they have nothing of an arrangement, a load or a model, that with a star."""
    found = []
    for name in set(names) - set(others):
        parts = name.split(".")
        stems = [".".join(parts[:length]) for length in range(2, len(parts))]
        missing = [stem for stem in stems if not any(other.startswith(f"{stem}.") for other in others)]
        found.append(f"{missing[0]}.*" if missing else name)
    return sorted(set(found))
