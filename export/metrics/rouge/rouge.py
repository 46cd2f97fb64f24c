"""ROUGE by rouge-score, as a local `evaluate` module that loads without the Hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer

DESCRIPTION = """ROUGE (Lin 2004): F1 of the words, word pairs and longest common subsequence of two texts, with stemmed words. Of
several references the most similar one counts."""
INPUTS = """
Args:
    predictions: one text per row.
    references: a list of right texts per row.
Returns:
    rouge_1: mean F1 of words, 0 to 1.
    rouge_2: mean F1 of word pairs, 0 to 1.
    rouge_l: mean F1 of the longest common subsequence, 0 to 1.
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
        """Return what :meth:`figures` needs of each row: ``[rows, 3]``."""
        scorer = RougeScorer(list(KINDS.values()), use_stemmer=True)
        scores = [scorer.score_multi(right, text) for text, right in zip(predictions, references, strict=True)]
        return np.array([[score[kind].fmeasure for kind in KINDS.values()] for score in scores])

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """Compute the figures from the statistics of some rows."""
        return dict(zip(KINDS, map(float, statistics.mean(axis=0)), strict=True))
