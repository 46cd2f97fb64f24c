"""Accuracy of choices, as a local `evaluate` module: no hub is needed to load it."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Share of rows where the right choice was taken. Which place it stands at means nothing, so there is no F1."
INPUTS = """
Args:
    predictions: positions of the choices taken, one a row.
    references: the right ones.
Returns:
    accuracy: 0 to 1.
"""


class Choice(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Accuracy."""

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
