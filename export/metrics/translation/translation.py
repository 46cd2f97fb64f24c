"""BLEU and chrF by sacrebleu, as a local `evaluate` module: no hub is needed to load it."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sacrebleu.metrics import BLEU, CHRF

DESCRIPTION = """Corpus BLEU (Papineni et al. 2002) and chrF (Popović 2015) as sacrebleu computes them (Post 2018): what two texts
have in common by words and by characters. Of few or poor texts BLEU is nothing, because it wants four words in a row; chrF tells
those apart too."""
INPUTS = """
Args:
    predictions: texts, one a row.
    references: lists of texts that are right.
Returns:
    bleu: 0 to 1; sacrebleu shows it times 100.
    chrf: 0 to 1; sacrebleu shows it times 100.
"""
OF_BLEU = 10
"""Numbers that BLEU needs of each row."""


class Translation(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """Corpus BLEU and chrF."""

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Value("string")
        features = datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Any:
        """``[rows, 28]``: all that :meth:`figures` needs of each row: n-grams of words, then of characters."""
        bleu, chrf = BLEU(), CHRF()
        rows = []
        for text, right in zip(predictions, references, strict=True):  # one by one: rows may have unlike numbers of references
            alone = [text], [[one] for one in right]
            rows.append([*bleu._extract_corpus_statistics(*alone)[0], *chrf._extract_corpus_statistics(*alone)[0]])
        return np.array(rows, dtype=np.int64)

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """The figures of some rows' statistics."""
        total = statistics.sum(axis=0).tolist()
        bleu, chrf = BLEU()._aggregate_and_compute([total[:OF_BLEU]]), CHRF()._aggregate_and_compute([total[OF_BLEU:]])
        return {"bleu": float(bleu.score) / 100, "chrf": float(chrf.score) / 100}
