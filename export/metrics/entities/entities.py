"""F1, precision and recall of entities, as a local `evaluate` module that loads without the Hub."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from export.tasks._tagging import first_tokens
from serving.runtime.tasks._labels import OUTSIDE

DESCRIPTION = """An entity is right if its first word, last word and kind are right, as in the CoNLL shared task (and seqeval): an
entity begins with B- or S-, after E- or S-, and where the kind changes. A word's predicted label is that of its first token. A
word without a token, because the text is truncated, is predicted to be outside of all entities."""
INPUTS = """
Args:
    predictions: the tokens of each row in order, as lists `start`, `end` (character offsets) and `label`.
    references: the words of each row, as lists of the same names.
Returns:
    f1, precision, recall: over all entities, 0 to 1.
    f1_macro: unweighted mean of the F1 of each kind that occurs, 0 to 1.
    word_accuracy: share of words with the right label, 0 to 1.
"""
EntityRow = Mapping[str, Sequence[Any]]


class Entities(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """F1, precision and recall of entities."""

    def _info(self) -> evaluate.MetricInfo:
        places = datasets.Sequence(datasets.Value("int64"))
        row = {"start": places, "end": places, "label": datasets.Sequence(datasets.Value("string"))}
        features = datasets.Features({"predictions": row, "references": row})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: Sequence[EntityRow], references: Sequence[EntityRow]) -> dict[str, float]:
        return self.figures(self.statistics(predictions, references))

    @staticmethod
    def statistics(predictions: Sequence[EntityRow], references: Sequence[EntityRow]) -> Any:
        """Count per row, ``[rows, 1 + kinds, 3]``: right words, words, 0; then per kind right, predicted and reference entities."""
        pairs = [(_word_labels(ours, words), list(words["label"])) for ours, words in zip(predictions, references, strict=True)]
        found = [(_entities(ours), _entities(wanted)) for ours, wanted in pairs]
        kinds = sorted({kind for sides in found for side in sides for kind, _, _ in side})
        position = {kind: 1 + index for index, kind in enumerate(kinds)}
        counts = np.zeros((len(pairs), 1 + len(kinds), 3), dtype=np.int64)
        for row, (pair, sides) in enumerate(zip(pairs, found, strict=True)):
            counts[row, 0, :2] = sum(one == other for one, other in zip(*pair, strict=True)), len(pair[1])
            for column, entities in enumerate((sides[0] & sides[1], *sides)):
                for kind, _, _ in entities:
                    counts[row, position[kind], column] += 1
        return counts

    @staticmethod
    def figures(statistics: Any) -> dict[str, float]:
        """Compute the figures from the statistics of some rows."""
        totals = statistics.sum(axis=0)
        words, kinds = totals[0], totals[1:]
        right, predicted, wanted = kinds.sum(axis=0).tolist()
        either = kinds[:, 1] + kinds[:, 2]
        each = 2 * kinds[either > 0, 0] / either[either > 0]
        return {
            "f1": 2 * right / max(predicted + wanted, 1),
            "precision": right / max(predicted, 1),
            "recall": right / max(wanted, 1),
            "f1_macro": float(each.mean()) if len(each) else 0.0,
            "word_accuracy": float(words[0] / max(words[1], 1)),
        }


def _word_labels(tokens: EntityRow, words: EntityRow) -> list[str]:
    """Return the predicted label of each word."""
    starts, ends = (np.array(tokens[side], dtype=np.int64) for side in ("start", "end"))
    firsts = first_tokens(starts, ends, words).tolist()
    return [tokens["label"][first] if first >= 0 else OUTSIDE for first in firsts]


def _entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities as kind, first word and last word + 1."""
    found: set[tuple[str, int, int]] = set()
    before, start = ("", ""), 0
    for word, label in enumerate([*labels, OUTSIDE]):
        mark, kind = _parts(label)
        if before[1] and (kind != before[1] or mark in ("B", "S", "U") or before[0] in ("E", "L", "S", "U")):
            found.add((before[1], start, word))
            before = ("", "")
        if kind and not before[1]:
            start = word
        before = (mark, kind)
    return found


def _parts(label: str) -> tuple[str, str]:
    """Split a label into mark and kind: ``B-person`` into ``B`` and ``person``, ``person`` into an empty mark and ``person``."""
    if label == OUTSIDE:
        return "", ""
    mark, dash, kind = label.partition("-")
    return (mark, kind) if dash and mark in ("B", "I", "E", "S", "L", "U") else ("", label)
