"""Accuracy, F1 and Matthews correlation of single-label classification, as a local `evaluate` module that loads without the Hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

DESCRIPTION = """Accuracy; precision, recall and F1, averaged over the labels; Matthews correlation. macro is the unweighted
mean over the labels, weighted the mean by their number of rows."""
INPUTS = """
Args:
    predictions: one label number per row.
    references: the right label number of each row.
Returns:
    accuracy: 0 to 1. It equals the micro average of precision, recall and F1.
    f1_macro: unweighted mean of the F1 of each label that occurs, 0 to 1.
    f1_weighted: the same, weighted by the number of rows with the label, 0 to 1.
    precision_macro: unweighted mean of the precision of each label, 0 to 1.
    recall_macro: unweighted mean of the recall of each label, 0 to 1.
    matthews_correlation: -1 to 1; 0 if all predictions are equal (as GLUE reports for CoLA).
    f1_positive: F1 of the second of two labels (as GLUE reports for MRPC), 0 to 1.
"""


class Classification(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Accuracy, precision, recall, F1 and Matthews correlation."""

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
        labels = np.unique(statistics)
        precision, recall, f1, rows = precision_recall_fscore_support(references, predictions, labels=labels, zero_division=0)
        found = {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1_macro": float(f1.mean()),
            "f1_weighted": float(np.average(f1, weights=rows)),
            "precision_macro": float(precision.mean()),
            "recall_macro": float(recall.mean()),
            "matthews_correlation": float(matthews_corrcoef(references, predictions)) if len(labels) > 1 else 0.0,
        }
        if statistics.max(initial=0) <= 1:
            found["f1_positive"] = float(f1[labels == 1].sum())
        return found
