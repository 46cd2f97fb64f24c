"""Two reports held against each other: what became better, what worse, by more than the machine's own moods.

Of the same build, two runs minutes apart differ by half where others use the machine too. So:

* **Speeds are held against a yardstick timed in the same rounds**: the PyTorch original and ``transformers.pipeline`` (the
  mean of their throughputs on real rows, geometric), which no change of a bundle or of the server touches. A machine that is
  slower today is slower for all. What is served is also held against the models in process whose files and runtimes are the
  same in both. The originals themselves are shown and not judged.
* **Worse is what is worse beside the yardstick**, beyond noise and allowance, **and plainly**, beyond the allowance: a figure
  that did not move is not worse because the yardstick recovered. Rounds in which the originals are much slower than at their
  best do not count. Where most rounds of a run are like that, or the originals run on other versions, it must be beyond noise
  plainly too.
* **Noise is measured** in the rounds of both reports (:mod:`benchmarks.comparing.measurement_noise`). A change counts only if it
  is larger than what is allowed *and* larger than what noise explains. A few seconds on a shared machine tell 40 % from nothing, not 10 %;
  more ``--duration`` and ``--rounds`` tell more, up to the difference between runs, which no round shows.
* **A model as a whole** is steadier than any of its figures: ``served.int8.*.throughput`` is the geometric mean over its
  arrangements or closed loops, the steady ones weighing more. Half the chance of a false alarm is left to these few.
* **On other rows**, or on rows cut at another length, speeds and energy are shown and not judged.
* **Open loops** are shown and not judged: near what the server can do, latency follows the machine's speed by multiples.
* **A run that others took the processor from** (more than 10 % of its time: other processes, or the host) is shown and not judged:
  processes that wait for each other, as a server's do, suffer far more from that than the yardstick.
* **Quality** is the same on the same labelled rows each time: allowed is a drop in points, noise there is none.
* **Energy, memory and loading** are measured once, or with whatever else the machine does: their tolerances are wide, and
  fixed.
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
