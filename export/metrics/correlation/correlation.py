"""Pearson's and Spearman's correlation of numbers, as a local `evaluate` module that loads without the Hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import rankdata

DESCRIPTION = "Correlation of predicted numbers with the right ones, by value (Pearson) and by rank (Spearman)."
INPUTS = """
Args:
    predictions: one number per row.
    references: the right number of each row.
Returns:
    pearson: -1 to 1; 0 if one side is constant.
    spearman: -1 to 1; 0 if one side is constant.
"""


class Correlation(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Pearson's and Spearman's correlation."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[float], references: Sequence[float]) -> Any:
        """Return what :meth:`figures` needs of each row: ``[rows, 2]``."""
        return np.array([predictions, references], dtype=np.float64).T

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """Compute the figures from the statistics of some rows."""
        return {"pearson": _pearson(statistics), "spearman": _pearson(rankdata(statistics, axis=0))}


def _pearson(pairs: Any) -> float:
    centred = pairs - pairs.mean(axis=0)
    scale = float(np.sqrt((centred**2).sum(axis=0).prod()))
    return float((centred[:, 0] * centred[:, 1]).sum()) / scale if scale else 0.0
