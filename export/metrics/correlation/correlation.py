"""Pearson's and Spearman's correlation of numbers, as a local `evaluate` module: no hub is needed to load it."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import rankdata

DESCRIPTION = "How well predicted numbers follow the right ones, by their values (Pearson) and by their order (Spearman)."
INPUTS = """
Args:
    predictions: numbers, one a row.
    references: the right ones.
Returns:
    pearson: -1 to 1; 0 where one side is all the same.
    spearman: -1 to 1; 0 where one side is all the same.
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
        """``[rows, 2]``: all that :meth:`figures` needs of each row."""
        return np.array([predictions, references], dtype=np.float64).T

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """The figures of some rows' statistics."""
        return {"pearson": _pearson(statistics), "spearman": _pearson(rankdata(statistics, axis=0))}


def _pearson(pairs: Any) -> float:
    centred = pairs - pairs.mean(axis=0)
    scale = float(np.sqrt((centred**2).sum(axis=0).prod()))
    return float((centred[:, 0] * centred[:, 1]).sum()) / scale if scale else 0.0
