"""Accuracy and perplexity of a language model, as a local `evaluate` module: no hub is needed to load it."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = "How well a model foresees each token of a text by those before it."
INPUTS = """
Args:
    predictions: three numbers a text: tokens foreseen, tokens that could be, and the sum of the surprise at them (nats).
Returns:
    likelihood: the probability given to a token, as a geometric mean: 1 / perplexity, 0 to 1.
    token_accuracy: share of the tokens that were the likeliest ones, 0 to 1.
    perplexity: e to the mean surprise at a token, 1 or more; less is better.
"""


class NextToken(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Token accuracy and perplexity."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[Sequence[float]]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, ()))

    @staticmethod
    def statistics(predictions: Sequence[Sequence[float]], references: Sequence[Any]) -> Any:  # noqa: ARG004 - texts are their own
        """``[texts, 3]``: all that :meth:`figures` needs of each text."""
        return np.array(predictions, dtype=np.float64)

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """The figures of some texts' statistics."""
        hits, counted, surprise = statistics.sum(axis=0)
        mean = surprise / counted
        return {"likelihood": float(np.exp(-mean)), "token_accuracy": float(hits / counted), "perplexity": float(np.exp(mean))}
