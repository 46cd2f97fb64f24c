"""Accuracy and F1 of single-label classification, as a local `evaluate` module that loads without the Hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score

DESCRIPTION = "Accuracy, and macro F1, the unweighted mean of the F1 of each label."
INPUTS = """
Args:
    predictions: one label number per row.
    references: the right label number of each row.
Returns:
    accuracy: 0 to 1.
    f1: macro F1 over the labels that occur, 0 to 1.
    f1_positive: F1 of the second of two labels (as GLUE reports for MRPC), 0 to 1.
"""


class Classification(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Accuracy and F1."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[int], references: Sequence[int]) -> Any:
        """Return what :meth:`figures` needs of each row: ``[rows, 2]``."""
        return np.array([predictions, references], dtype=np.int64).T

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """Compute the figures from the statistics of some rows."""
        predictions, references = statistics.T
        found = {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
        }
        if statistics.max(initial=0) <= 1:
            found["f1_positive"] = float(f1_score(references, predictions, zero_division=0))
        return found
