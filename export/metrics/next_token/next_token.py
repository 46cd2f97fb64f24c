"""Accuracy and perplexity of a language model, as a local `evaluate` module that loads without the Hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = "How well a model predicts each token of a text from the tokens before it."
INPUTS = """
Args:
    predictions: three numbers per text: right tokens, predicted tokens, and the sum of their negative log-likelihoods (nats).
Returns:
    likelihood: geometric mean of the probability of a token, 1 / perplexity, 0 to 1.
    token_accuracy: share of tokens that the model finds most likely, 0 to 1.
    perplexity: exponential of the mean negative log-likelihood, 1 or more, infinite if it overflows; lower is better.
"""


class NextToken(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Token accuracy and perplexity."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[Sequence[float]]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, ()))

    @staticmethod
    def statistics(predictions: Sequence[Sequence[float]], references: Sequence[Any]) -> Any:  # noqa: ARG004 - texts are their own references
        """Return what :meth:`figures` needs of each text: ``[texts, 3]``."""
        return np.array(predictions, dtype=np.float64)

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """Compute the figures from the statistics of some texts."""
        hits, counted, negative_log_likelihood = statistics.sum(axis=0)
        mean = negative_log_likelihood / counted
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(mean))
        return {"likelihood": float(np.exp(-mean)), "token_accuracy": float(hits / counted), "perplexity": perplexity}
