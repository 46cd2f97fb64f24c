"""BLEU and chrF by sacrebleu, as a local `evaluate` module that loads without the Hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sacrebleu.metrics import BLEU, CHRF

DESCRIPTION = """Corpus BLEU (Papineni et al. 2002) and chrF (Popović 2015) as sacrebleu computes them (Post 2018): the overlap of
n-grams of words and of characters. BLEU is 0 where no four words in a row match, as for few or poor texts; chrF still
distinguishes those."""
INPUTS = """
Args:
    predictions: one text per row.
    references: a list of right texts per row.
Returns:
    bleu: 0 to 1; sacrebleu shows it times 100.
    chrf: 0 to 1; sacrebleu shows it times 100.
"""
BLEU_STATISTICS = 10
"""Number of statistics that BLEU needs of each row."""


class TranslationQuality(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Corpus BLEU and chrF."""

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Value("string")
        features = datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Any:
        """Return n-gram counts of words, then of characters, of each row: ``[rows, 28]``."""
        bleu, chrf = BLEU(), CHRF()
        rows = []
        for text, right in zip(
            predictions, references, strict=True
        ):  # row by row, because rows may have different numbers of references
            alone = [text], [[one] for one in right]
            rows.append([*bleu._extract_corpus_statistics(*alone)[0], *chrf._extract_corpus_statistics(*alone)[0]])
        return np.array(rows, dtype=np.int64)

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """Compute the figures from the statistics of some rows."""
        total = statistics.sum(axis=0).tolist()
        bleu, chrf = (
            BLEU()._aggregate_and_compute([total[:BLEU_STATISTICS]]),
            CHRF()._aggregate_and_compute([total[BLEU_STATISTICS:]]),
        )
        return {"bleu": float(bleu.score) / 100, "chrf": float(chrf.score) / 100}
