"""Accuracy alone, as a local `evaluate` module: no hub is needed to load it."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Share of rows predicted right, where the numbers mean nothing by themselves, so that there is no F1 of each."
INPUTS = """
Args:
    predictions: whole numbers, one a row: the choice taken, or the token filled in.
    references: the right ones.
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
        """``[rows]``: all that :meth:`figures` needs of each row."""
        return np.equal(predictions, references)

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """The figures of some rows' statistics."""
        return {"accuracy": float(statistics.mean())}
