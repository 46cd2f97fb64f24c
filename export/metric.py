"""Task metrics through ``evaluate``, and intervals that keep noise on a few hundred rows from deciding anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

METRICS = Path(__file__).parent / "metrics"
CONFIDENCE = 0.95
RESAMPLES = 500
ROUNDING = 1e-6

Outcomes = npt.NDArray[np.bool_]
"""One right or wrong per row."""


def load_metric(name: str) -> Any:
    """The local ``evaluate`` module called ``name``; its ``compute(predictions=…, references=…)`` gives figures by name."""
    import evaluate

    return evaluate.load(str(METRICS / name))


def paired_drop(original: Outcomes, variant: Outcomes) -> tuple[float, tuple[float, float]]:
    """How much smaller the variant's share of right rows is, and a 95 % interval.

    The interval is exact given how many rows one of the two gets right and the other wrong (McNemar): how many of those the
    variant loses is binomial, and its Clopper-Pearson interval is carried over. That their number could have been another is
    left out. Where there are none, nothing is left to go by but their absence: the interval then reaches as far to either side
    as the share of rows lost (or won) may be when none of all rows was.

    Args:
        original, variant: ``[rows]``, the same rows in the same order.

    Returns:
        Drop (positive where the variant is worse) and its bounds, all as shares of the rows, -1 to 1.
    """
    rows = len(original)
    lost, won = int((original & ~variant).sum()), int((~original & variant).sum())
    if lost + won == 0:
        most = share_interval(0, rows)[1]
        return 0.0, (-most, most)
    low, high = share_interval(lost, lost + won)
    scale = (lost + won) / rows
    return (lost - won) / rows, ((2 * low - 1) * scale, (2 * high - 1) * scale)


def share_interval(hits: int, rows: int) -> tuple[float, float]:
    """Clopper-Pearson 95 % interval of a share."""
    from scipy.stats import binomtest

    interval = binomtest(hits, rows).proportion_ci(confidence_level=CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def compute(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Figures of the metric called ``name``, 1 at best."""
    figures: dict[str, float] = load_metric(name).compute(predictions=predictions, references=references)
    return figures


def bootstrapped(name: str, figure: str, predictions: Sequence[Any], references: Sequence[Any]) -> tuple[float, float, float]:
    """``figure`` of the metric called ``name``, and its 95 % interval: the percentile bootstrap's over the rows.

    Where that would have no width, since every row is right, it reaches as far as :func:`share_interval` says.
    """
    statistics, value = _statistics(name, figure)
    found = statistics(predictions, references)
    whole = value(found)
    low, high = _interval([value(found[rows]) for rows in _resamples(len(found))])
    if high - low < ROUNDING:  # all rows alike: others may still be otherwise, as many as none of these rows lets expect
        most = share_interval(0, len(found))[1]
        low, high = whole - most if whole < 0 else max(0.0, whole - most), min(1.0, whole + most)
    return whole, low, high


def bootstrapped_drop(
    name: str, figure: str, original: Sequence[Any], variant: Sequence[Any], references: Sequence[Any]
) -> tuple[float, tuple[float, float]]:
    """How much smaller ``figure`` of the metric called ``name`` is for the variant's predictions, and a 95 % interval.

    The interval is the percentile bootstrap's over the rows, both sides drawn alike. Where no row's statistics differ, or by no
    more than rounding, it would have no width: it then reaches as far as that of :func:`paired_drop`.

    Returns:
        Drop (positive where the variant is worse) and its bounds.
    """
    statistics, value = _statistics(name, figure)
    ours, theirs = statistics(variant, references), statistics(original, references)
    drop = value(theirs) - value(ours)
    most = share_interval(0, len(ours))[1]
    if np.array_equal(ours, theirs):
        return 0.0, (-most, most)
    low, high = _interval([value(theirs[rows]) - value(ours[rows]) for rows in _resamples(len(ours))])
    return drop, ((low, high) if high - low >= ROUNDING else (drop - most, drop + most))


def _statistics(name: str, figure: str) -> tuple[Callable[..., Any], Callable[[Any], float]]:
    """What of each row a figure needs, and the figure of some rows' statistics."""
    if figure == "accuracy":  # a mean of outcomes: the modules would find every other figure too, hundreds of times
        return np.equal, lambda outcomes: float(outcomes.mean())
    metric = load_metric(name)
    return metric.statistics, lambda statistics: float(metric.figures(statistics)[figure])


def _resamples(rows: int) -> Iterator[npt.NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    return (generator.integers(rows, size=rows) for _ in range(RESAMPLES))


def _interval(found: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(found, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)
