"""Micro and macro F1 of multi-label classification, as a local `evaluate` module that loads without the Hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Micro F1, macro F1, and the share of rows whose labels are all right."
INPUTS = """
Args:
    predictions: a list of label numbers per row.
    references: the right label numbers of each row.
Returns:
    f1_micro: F1 over all labels of all rows together, 0 to 1.
    f1_macro: unweighted mean of the F1 of each label over the labels that occur, 0 to 1.
    exact: share of rows whose labels are all right, 0 to 1.
"""


class MultiLabel(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Micro and macro F1, exact match."""

    def _info(self) -> evaluate.MetricInfo:
        positions = datasets.Sequence(datasets.Value("int64"))
        features = datasets.Features({"predictions": positions, "references": positions})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> Any:
        """Return what :meth:`figures` needs of each row: ``[rows, 2, labels]``, 0 or 1."""
        labels = 1 + max((label for rows in (predictions, references) for row in rows for label in row), default=0)
        marks = np.zeros((len(references), 2, labels), dtype=np.int64)
        for side, rows in enumerate((predictions, references)):
            for index, row in enumerate(rows):
                marks[index, side, list(row)] = 1
        return marks

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """Compute the figures from the statistics of some rows."""
        predicted, wanted = statistics[:, 0], statistics[:, 1]
        right = (predicted & wanted).sum(axis=0)
        either = (predicted + wanted).sum(axis=0)
        each = 2 * right[either > 0] / either[either > 0]
        return {
            "f1_micro": float(2 * right.sum() / max(either.sum(), 1)),
            "f1_macro": float(each.mean()) if len(each) else 0.0,
            "exact": float((predicted == wanted).all(axis=-1).mean()),
        }
