"""Task metrics through ``evaluate``, and confidence intervals of metrics and of differences between two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

METRICS = Path(__file__).parent / "metrics"
CONFIDENCE = 0.95
RESAMPLES = 500
ROUNDING = 1e-6
"""An interval that is narrower than this counts as having no width."""

Outcomes = npt.NDArray[np.bool_]
"""``[rows]``: whether each row is right."""
RowStatistics = npt.NDArray[Any]
"""``[rows, …]``: what a metric needs of each row."""


def load_metric(name: str) -> Any:
    """Load a metric of this project.

    Args:
        name: Folder in ``export/metrics``.

    Returns:
        The ``evaluate`` module. Its ``compute(predictions=…, references=…)`` returns figures by name.
    """
    import evaluate

    return evaluate.load(str(METRICS / name))


def compute(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Compute all figures of a metric.

    Args:
        name: The metric.
        predictions: One prediction per row.
        references: The right answer of each row.

    Returns:
        Figures by name. Higher is better for those that models are chosen by.
    """
    figures: dict[str, float] = load_metric(name).compute(predictions=predictions, references=references)
    return figures


def finite_or_none(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Replace figures that are NaN or infinite by None, as manifests record them."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def shown(value: float | None, form: str) -> str:
    """Format a figure; ``none`` for None, which stands for NaN or infinite."""
    return "none" if value is None else format(value, form)


def paired_drop(original: Outcomes, variant: Outcomes) -> tuple[float, tuple[float, float]]:
    """Compute by how much the variant's accuracy is lower, with a 95 % interval.

    The interval is exact given the number of discordant rows, which one of the two gets right and the other wrong (McNemar):
    the number of them that the variant loses is binomial, and its Clopper-Pearson interval is rescaled. The variance of the
    number of discordant rows is neglected. Without discordant rows the interval reaches as far to either side as the upper
    bound of the share of such rows.

    Args:
        original: ``[rows]``, outcomes of the original.
        variant: ``[rows]``, outcomes of the variant on the same rows in the same order.

    Returns:
        Drop (positive where the variant is worse) and its bounds, all as shares of the rows, -1 to 1.
    """
    rows = len(original)
    lost, won = int((original & ~variant).sum()), int((~original & variant).sum())
    if lost + won == 0:
        bound = share_interval(0, rows)[1]
        return 0.0, (-bound, bound)
    low, high = share_interval(lost, lost + won)
    scale = (lost + won) / rows
    return (lost - won) / rows, ((2 * low - 1) * scale, (2 * high - 1) * scale)


def tail(values: npt.NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    """Return the 99th percentile and the largest of some values; None and None if there are none."""
    if values is None or not len(values):
        return None, None
    return float(np.quantile(values, 0.99, method="inverted_cdf")), float(values.max())


def share_interval(hits: int, rows: int) -> tuple[float, float]:
    """Compute the Clopper-Pearson 95 % interval of a share.

    Args:
        hits: Number of rows that count.
        rows: Number of all rows.

    Returns:
        The bounds, 0 to 1.
    """
    from scipy.stats import binomtest

    interval = binomtest(hits, rows).proportion_ci(confidence_level=CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def bootstrapped(name: str, figure: str, predictions: Sequence[Any], references: Sequence[Any]) -> tuple[float, float, float]:
    """Compute a figure and its 95 % percentile bootstrap interval over the rows.

    An interval without width, as where every row is right, is widened by the upper bound of :func:`share_interval` for no hits.

    Args:
        name: The metric.
        figure: Name of the figure.
        predictions: One prediction per row.
        references: The right answer of each row.

    Returns:
        The figure, and the lower and upper bound.
    """
    statistics, value = _statistics(name, figure)
    found = statistics(predictions, references)
    figure_value = value(found)
    low, high = _percentile_interval(len(found), lambda rows: value(found[rows]))
    if high - low < ROUNDING:
        bound = share_interval(0, len(found))[1]
        low, high = figure_value - bound if figure_value < 0 else max(0.0, figure_value - bound), min(1.0, figure_value + bound)
    return figure_value, low, high


def bootstrapped_drop(
    name: str, figure: str, original: Sequence[Any], variant: Sequence[Any], references: Sequence[Any]
) -> tuple[float, tuple[float, float]]:
    """Compute by how much a figure is lower for the variant, with the 95 % percentile bootstrap interval over paired rows.

    An interval without width, because no row's statistics differ by more than rounding, becomes as wide as in
    :func:`paired_drop`.

    Args:
        name: The metric.
        figure: Name of the figure.
        original: The original's prediction for each row.
        variant: The variant's prediction for each row.
        references: The right answer of each row.

    Returns:
        Drop (positive where the variant is worse) and its bounds.
    """
    statistics, value = _statistics(name, figure)
    of_variant, of_original = statistics(variant, references), statistics(original, references)
    drop = value(of_original) - value(of_variant)
    bound = share_interval(0, len(of_variant))[1]
    if np.array_equal(of_variant, of_original):
        return 0.0, (-bound, bound)
    low, high = _percentile_interval(len(of_variant), lambda rows: value(of_original[rows]) - value(of_variant[rows]))
    return drop, ((low, high) if high - low >= ROUNDING else (drop - bound, drop + bound))


def _statistics(name: str, figure: str) -> tuple[Callable[..., RowStatistics], Callable[[RowStatistics], float]]:
    """Return the function from predictions and references to row statistics, and that from row statistics to the figure."""
    if figure == "accuracy":  # the modules would compute every other figure too, in every resample
        return np.equal, lambda outcomes: float(outcomes.mean())
    metric = load_metric(name)
    return metric.statistics, lambda statistics: float(metric.figures(statistics)[figure])


def _percentile_interval(count: int, value: Callable[[npt.NDArray[np.int64]], float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of ``value``, a function of row numbers drawn from ``count`` rows."""
    from scipy.stats import bootstrap

    rows = np.arange(count)
    if count < 2:  # which scipy refuses to resample
        return value(rows), value(rows)
    found = bootstrap(
        (rows,),
        value,
        n_resamples=RESAMPLES,
        batch=1,  # more would hold that many times the rows in memory
        vectorized=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
