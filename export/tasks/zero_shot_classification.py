"""Zero-shot classification: labels that the model was not trained on, by natural language inference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from export.tasks._encoder import ExportedEncoderTask
from export.tasks.base import Label, Prediction, Reference, label_names
from serving.runtime.tasks._strings import write_strings
from serving.runtime.tasks.zero_shot_classification import ZeroShotClassification
from serving.runtime.types import Arrays, Flags, TextColumns

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import Pipeline

CLOSE = 1e-4
"""The two best labels count as tied if their scores differ by less."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotClassificationTask(ExportedEncoderTask[ZeroShotClassification]):
    """Evaluates zero-shot classification.

    Attributes:
        labels: Labels of the rows it was verified on; they are the candidates of every such row. Empty: not verified.
    """

    labels: tuple[str, ...] = ()

    name: ClassVar[str] = ZeroShotClassification.name
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    served_class: ClassVar[type[ZeroShotClassification]] = ZeroShotClassification
    optimum_task: ClassVar[str] = "text-classification"
    trained_as: ClassVar[str] = "text-classification"

    @classmethod
    def from_config(cls, config: Mapping[str, object], *, pair: bool = True) -> Self:  # noqa: ARG003 - always pairs
        """Find the entailment logit as the pipeline of ``transformers`` does."""
        labels = label_names(config)
        given = config.get("label2id") if config.get("id2label") else None  # alone it is not read
        label2id = cast("Mapping[str, int | str]", given or {label: index for index, label in enumerate(labels)})
        named = [int(index) for label, index in label2id.items() if str(label).lower().startswith("entail")]
        entailment = named[0] if named else len(labels) - 1
        if not 0 <= entailment < len(labels):
            raise ValueError(f"its label2id says that entailment is logit {entailment}, but there are {len(labels)} logits")
        contradiction = len(labels) - 1 if named and entailment == 0 else 0
        return cls(served=ZeroShotClassification(entailment=entailment, contradiction=contradiction))

    @classmethod
    def suits(cls, config: Mapping[str, object]) -> bool:
        """Look for the label of entailment; the pipeline of ``transformers`` takes any classifier."""
        named = config.get("label2id") or config.get("id2label")
        words = [*named, *named.values()] if isinstance(named, dict) else []  # the file may hold any JSON
        return any(str(word).lower().startswith("entail") for word in words)

    @property
    def plain_texts(self) -> int:
        """Return 1: the labels are a list."""
        return 1

    @classmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read one text and the name of its label."""
        if len(texts) != 1:
            raise ValueError(f"a row is one text and its label, but there are {len(texts)} texts")
        if type(label) is int or (isinstance(label, str) and label):
            return texts, label
        raise ValueError(f"the label must be a name, not {label!r:.80}")

    def with_evaluation_labels(self, labels: Sequence[Label], *, names: Sequence[str]) -> Self:
        """Take the labels of the rows as every row's candidates."""
        found = tuple(names) or tuple(sorted(set(cast("Sequence[str]", labels))))
        if not all(isinstance(label, str) for label in found):
            shown = ", ".join(map(str, found[:5]))
            raise ValueError(f"the labels are numbers ({shown}), but a zero-shot model reads label names: give rows with names")
        if len(found) < 2:
            raise ValueError(f"has one label only, {found[0]!r}: there is nothing to tell apart")
        return replace(self, labels=found)

    def reference(self, label: Label) -> Reference:
        """Return the position of the label."""
        if label not in self.labels:
            raise ValueError(f"unknown label {label!r}, known labels: {', '.join(self.labels)}")
        return self.labels.index(label)

    def is_reference(self, value: object) -> bool:
        """Accept a position."""
        return isinstance(value, int) and 0 <= value < len(self.labels)

    @property
    def text_columns(self) -> int:
        """Return 1: the candidates are not in the data set."""
        return 1

    def requests(self, columns: TextColumns) -> TextColumns:
        """Give every row all labels of the data set as its candidates."""
        return [columns[0], [write_strings(self.labels)] * len(columns[0])]

    # -- evaluation -----------------------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        """Return the metric of single labels."""
        return "classification"

    @property
    def default_metric(self) -> str:
        """Return accuracy."""
        return "accuracy"

    @property
    def selectable_metrics(self) -> tuple[str, ...]:
        """Return the figures of the metric."""
        return ("accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro", "matthews_correlation")

    def predictions(self, answers: Arrays) -> list[Prediction]:
        """Return the position of the best label."""
        places = {label: place for place, label in enumerate(self.labels)}
        return [places.get(json.loads(labels)[0], -1) for labels in answers["LABELS"][:, 0]]

    def confidence(self, answers: Arrays) -> npt.NDArray[np.float64] | None:
        """Return the score of the best label, where scores are probabilities."""
        if self.served.multi_label:
            return None
        return np.array([json.loads(scores)[0] for scores in answers["SCORES"][:, 0]])

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Compare the best labels."""
        pairs = zip(answers["LABELS"][:, 0], original["LABELS"][:, 0], strict=True)
        return np.array([json.loads(ours)[0] == json.loads(theirs)[0] for ours, theirs in pairs], dtype=np.float64)

    def row_agreement(self, answers: Arrays, original: Arrays) -> Flags:
        """Compare the order of all labels. Labels whose scores are closer than :data:`CLOSE` have either order."""
        found = []
        for labels, scores in zip(answers["LABELS"][:, 0], _scores_by_label(original), strict=True):
            ordered = [scores[label] for label in json.loads(labels)]
            found.append(all(first > second - CLOSE for first, second in pairwise(ordered)))
        return np.array(found, dtype=np.bool_)

    @property
    def labels_per_row(self) -> int:
        """Return the number of candidate labels."""
        return len(self.labels)

    def score_changes(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Return the changes of the original's best labels."""
        rows = zip(_scores_by_label(answers), _scores_by_label(original), strict=True)
        return np.array([abs(ours[best := next(iter(theirs))] - theirs[best]) for ours, theirs in rows], dtype=np.float64)

    def ties(self, original: Arrays) -> Flags:
        """Find rows whose two best scores are closer than :data:`CLOSE`."""
        rows = [json.loads(scores) for scores in original["SCORES"][:, 0]]
        return np.array([len(row) > 1 and row[0] - row[1] < CLOSE for row in rows], dtype=np.bool_)

    def ask_pipeline(self, pipeline: Pipeline, rows: Sequence[Sequence[str]], *, max_length: int) -> list[object]:  # noqa: ARG002
        """Ask once per list of labels, because the pipeline takes one list per call. It truncates at the tokenizer's length."""
        answers: list[object] = [None] * len(rows)
        for labels in dict.fromkeys(labels for _, labels in rows):
            places = [place for place, row in enumerate(rows) if row[1] == labels]
            found = pipeline([rows[place][0] for place in places], json.loads(labels), batch_size=len(rows))
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers


def _scores_by_label(answers: Arrays) -> list[dict[str, float]]:
    """Return the scores of each row by label, the best first."""
    rows = zip(answers["LABELS"][:, 0], answers["SCORES"][:, 0], strict=True)
    return [dict(zip(json.loads(labels), json.loads(scores), strict=True)) for labels, scores in rows]


TASK = ZeroShotClassificationTask
