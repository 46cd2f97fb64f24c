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
* **Energy, memory, load time, and processor time per token** are measured once, or together with whatever else runs: their
  tolerances are wide and fixed. So is that of the perplexity, which is the bundle's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.benchmark_options import Tolerances
from benchmarks.comparing import comparability
from benchmarks.comparing.reference import OTHER_ROWS, REPEATED, compare_speeds
from benchmarks.report import Report
from benchmarks.verdicts import FigureComparison, ReportComparison, relative
from serving.errors import DataError

COSTS = {
    "joules_per_row": (0.5, 0.0),
    "cpu_ms_per_token": (0.25, 0.0),
    "perplexity": (0.005, 0.0),
    "load_seconds": (2.0, 5.0),
    "peak_rss_mib": (0.25, 64.0),
    "pss_mib": (0.25, 64.0),
    "gpu_memory_mib": (0.25, 64.0),
}
"""Tolerance of each cost: relative, and absolute in the figure's unit. The larger one applies."""
PER_ROW = ("joules_per_row", "cpu_ms_per_token")
"""Costs that depend on the rows."""
TIMED = (*REPEATED, *PER_ROW, "load_seconds")
TAKEN = "others used the processor"
ROUNDING = 1e-9
"""A metric that dropped by exactly the tolerance has not dropped by more."""


def compare(before: Report, now: Report, tolerances: Tolerances) -> ReportComparison:
    """Compare a report with an earlier one.

    Returns:
        The comparison of every figure that both have.

    Raises:
        DataError: They have no figure in common.
    """
    versions = comparability.other_reference(before, now)
    speeds, notes = compare_speeds(before, now, tolerance=tolerances.max_regression, absolute_too=bool(versions))
    found = [*speeds, *_costs(before, now)]
    if others := sum(one.why == OTHER_ROWS for one in found):
        notes.append(f"{others} figures of speed and energy are not compared: {OTHER_ROWS}")
    if versions:
        notes.insert(0, f"the reference runs on other versions ({versions}): the absolute change must exceed the noise too")
    found, said = _excluded(before, now, found, any_machine=tolerances.any_machine)
    quality, about_quality = _qualities(before, now, tolerances.max_quality_drop / 100)
    if not found and not quality:
        raise DataError(
            "the baseline has no figure in common with this run",
            hint="compare runs of the same precisions, protocols and concurrencies",
        )
    ours, theirs = _names(before), _names(now)
    return ReportComparison(
        before=comparability.title(before),
        now=comparability.title(now),
        figures=found + quality,
        notes=[*said, *notes, *about_quality, *comparability.differences(before, now)],
        only_before=_lacking(ours, theirs),
        only_now=_lacking(theirs, ours),
    )


def _excluded(
    before: Report, now: Report, found: list[FigureComparison], *, any_machine: bool
) -> tuple[list[FigureComparison], list[str]]:
    """The comparisons without those that another machine, or foreign work on it, makes meaningless; and notes about it."""
    elsewhere, taken = comparability.other_machine(before, now), comparability.taken_away(before, now)
    notes = []
    if elsewhere:
        notes.append(f"another machine: {elsewhere}")
    if taken:
        notes.append(f"others used the processor, {taken}")
    if any_machine:
        return found, notes
    if taken:
        notes[-1] += ": speeds are not compared; measure again on an idle machine, or compare them with --any-machine"
        found = [_not_compared(one, TAKEN) if one.figure.rpartition(".")[2] in TIMED else one for one in found]
    if elsewhere:
        notes[0] += "; only quality is compared, --any-machine compares everything"
        found = [_not_compared(one, "another machine") for one in found]
    return found, notes


def _not_compared(one: FigureComparison, why: str) -> FigureComparison:
    return replace(one, verdict="not compared", tolerance=None, noise=None, why=why)


def _costs(before: Report, now: Report) -> Iterator[FigureComparison]:
    ours, theirs, ways = before.figures(), now.figures(), dict(before.measured())
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
        other_rows = kind in PER_ROW and not comparability.same_timed_rows(before, now, ways[way].length)
        yield _not_compared(one, OTHER_ROWS) if other_rows else one


def _qualities(before: Report, now: Report, tolerance: float) -> tuple[list[FigureComparison], list[str]]:
    """Metrics and agreement of every model, and notes about them."""
    same = comparability.same_labelled_rows(before, now)
    why = {None: "the reports do not say on which rows", False: "on other labelled rows", True: ""}[same]
    ours, theirs = _quality_figures(before), _quality_figures(now)
    found = []
    for name in (name for name in ours if name in theirs):
        change = theirs[name] - ours[name]
        one = FigureComparison(
            figure=name,
            before=ours[name],
            now=theirs[name],
            change=change,
            points=True,
            tolerance=tolerance,
            verdict="worse" if change < -tolerance - ROUNDING else "better" if change > tolerance + ROUNDING else "same",
        )
        found.append(_not_compared(one, why) if why else one)
    return found, [f"quality is not compared: {why}"] if why and found else []


def _quality_figures(report: Report) -> dict[str, float]:
    return {
        f"{name}.{figure}": value
        for name, quality in report.qualities().items()
        for figure, value in (quality.metrics | {"agreement": quality.agreement, "row_agreement": quality.row_agreement}).items()
        if value is not None
    }


def _names(report: Report) -> list[str]:
    """Figures that are compared if both reports have them."""
    own = [*dict(report.measured()), *([report.served.name] if report.served else [])]
    wanted = {f"{name}.{kind}" for name in own for kind in (*REPEATED, *COSTS)}
    return [name for name in report.figures() if name in wanted] + list(_quality_figures(report))


def _lacking(names: list[str], others: list[str]) -> list[str]:
    """Those of ``names`` that ``others`` lack; a whole arrangement, load or model that is missing is written with a star."""
    found = []
    for name in set(names) - set(others):
        parts = name.split(".")
        stems = [".".join(parts[:length]) for length in range(2, len(parts))]
        missing = [stem for stem in stems if not any(other.startswith(f"{stem}.") for other in others)]
        found.append(f"{missing[0]}.*" if missing else name)
    return sorted(set(found))
