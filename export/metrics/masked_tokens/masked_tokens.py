"""Accuracy of filled masks, as a local `evaluate` module: no hub is needed to load it."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = "How often the best token for a mask is the one that stood there."
INPUTS = """
Args:
    predictions: the best token's number, one a row.
    references: the right one's.
Returns:
    accuracy: share of rows whose best token is the right one, 0 to 1.
"""


class MaskedTokens(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Accuracy."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[int], references: Sequence[int]) -> Any:
        """``[rows, 2]``: all that :meth:`figures` needs of each row."""
        return np.array([predictions, references], dtype=np.int64).T

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """The figures of some rows' statistics."""
        predictions, references = statistics.T
        return {"accuracy": float((predictions == references).mean())}
