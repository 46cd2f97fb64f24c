"""SQuAD's exact match and F1 of extracted answers, as a local `evaluate` module that loads without the Hub."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Share of right answers, and mean F1 of their words; case, punctuation and articles are ignored."
INPUTS = """
Args:
    predictions: one answer per row; empty: no answer.
    references: the right answers of each row, any of which counts; an empty list: the row has no answer.
Returns:
    exact_match: share of rows with a right answer, 0 to 1.
    f1: mean F1 of an answer's words with those of the most similar right answer, 0 to 1.
"""
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class SpanMatch(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Exact match and F1."""

    def _info(self) -> evaluate.MetricInfo:
        answer = {"text": datasets.Value("string"), "answer_start": datasets.Value("int64")}
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.List(answer)})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[str], references: Sequence[Sequence[Mapping[str, Any]]]) -> Any:
        """Return exact match and F1 of each row, ``[rows, 2]``."""
        return np.array([_row(*row) for row in zip(predictions, references, strict=True)], dtype=np.float64).reshape(-1, 2)

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """Compute the figures from the statistics of some rows."""
        exact, f1 = statistics.mean(axis=0)
        return {"exact_match": float(exact), "f1": float(f1)}


def _row(prediction: str, references: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    # as in the script of SQuAD 2.0, an answer without words counts as no answer
    right = [words for answer in references if (words := _words(answer["text"]))] or [[]]
    found = _words(prediction)
    return float(found in right), max(_f1(found, words) for words in right)


def _words(text: str) -> list[str]:
    """Return the words in lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _f1(found: list[str], right: list[str]) -> float:
    if not found or not right:
        return float(found == right)
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right))
