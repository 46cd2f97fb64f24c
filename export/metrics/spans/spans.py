"""SQuAD's exact match and F1 of answers taken from a text, as a local `evaluate` module: no hub is needed to load it."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Share of answers that are a right one, and the mean F1 of their words, case, punctuation and articles left out."
INPUTS = """
Args:
    predictions: answers, one a row; empty: none.
    references: a row's right answers, any of which will do; none: it has no answer.
Returns:
    exact_match: share of rows with a right answer, 0 to 1.
    f1: mean over the rows of the F1 of an answer's words, with the right answer it is nearest to, 0 to 1.
"""
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Spans(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Exact match and F1."""

    def _info(self) -> evaluate.MetricInfo:
        answer = {"text": datasets.Value("string"), "answer_start": datasets.Value("int64")}
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.List(answer)})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[str], references: Sequence[Sequence[Mapping[str, Any]]]) -> Any:
        """``[rows, 2]``: exact match and F1 of each row."""
        return np.array([_row(*row) for row in zip(predictions, references, strict=True)], dtype=np.float64).reshape(-1, 2)

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """The figures of some rows' statistics."""
        exact, f1 = statistics.mean(axis=0)
        return {"exact_match": float(exact), "f1": float(f1)}


def _row(prediction: str, references: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    # SQuAD 2.0's script: what nothing is left of is no answer
    right = [words for answer in references if (words := _words(answer["text"]))] or [[]]
    found = _words(prediction)
    return float(found in right), max(_f1(found, words) for words in right)


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _f1(found: list[str], right: list[str]) -> float:
    if not found or not right:
        return float(found == right)
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right))
