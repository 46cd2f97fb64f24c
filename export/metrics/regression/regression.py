"""Correlation and squared error of predicted numbers, as a local `evaluate` module that loads without the Hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from export.metrics.correlation import correlation  # not the class: evaluate would load that one

DESCRIPTION = "Correlation of predicted numbers with the right ones, and their mean squared error."
INPUTS = """
Args:
    predictions: one number per row.
    references: the right number of each row.
Returns:
    pearson: correlation by value, -1 to 1; 0 if one side is constant.
    spearman: correlation by rank, -1 to 1; 0 if one side is constant.
    negative_mse: mean squared error with a minus sign, so that higher is better; 0 or less.
"""


class Regression(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Pearson's and Spearman's correlation, and the negative mean squared error."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[float], references: Sequence[float]) -> Any:
        """Return what :meth:`figures` needs of each row: ``[rows, 2]``."""
        return correlation.Correlation.statistics(predictions, references)

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """Compute the figures from the statistics of some rows."""
        errors = statistics[:, 0] - statistics[:, 1]
        return correlation.Correlation.figures(statistics) | {"negative_mse": -float((errors**2).mean())}
