"""ROUGE by rouge-score, as a local `evaluate` module: no hub is needed to load it."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer

DESCRIPTION = """ROUGE (Lin 2004): how many of the words, of the pairs of words and of the longest series of words two texts have in
common, as F1; words are stemmed. Where several texts are right, the nearest counts."""
INPUTS = """
Args:
    predictions: texts, one a row.
    references: lists of texts that are right.
Returns:
    rouge_1: mean F1 of words, 0 to 1.
    rouge_2: mean F1 of pairs of words, 0 to 1.
    rouge_l: mean F1 of the longest common series of words, 0 to 1.
"""
KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


class Rouge(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """ROUGE-1, ROUGE-2 and ROUGE-L."""

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Value("string")
        features = datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Any:
        """``[rows, 3]``: all that :meth:`figures` needs of each row."""
        scorer = RougeScorer(list(KINDS.values()), use_stemmer=True)
        scores = [scorer.score_multi(right, text) for text, right in zip(predictions, references, strict=True)]
        return np.array([[score[kind].fmeasure for kind in KINDS.values()] for score in scores])

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """The figures of some rows' statistics."""
        return dict(zip(KINDS, map(float, statistics.mean(axis=0)), strict=True))
