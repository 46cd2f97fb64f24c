"""Accuracy alone, as a local `evaluate` module that loads without the Hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = (
    "Share of correct rows, for predictions without fixed classes, such as the index of a choice, where F1 does not apply."
)
INPUTS = """
Args:
    predictions: one integer per row: the chosen choice or the filled-in token.
    references: the right one of each row.
Returns:
    accuracy: 0 to 1.
"""


class Accuracy(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Share of right rows."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[int], references: Sequence[int]) -> Any:
        """Return what :meth:`figures` needs of each row: ``[rows]``."""
        return np.equal(predictions, references)

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """Compute the figures from the statistics of some rows."""
        return {"accuracy": float(statistics.mean())}
