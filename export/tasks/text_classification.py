"""Text classification: labels of one text or a pair of texts, exclusive, independent (multi-label), or a number (regression)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from export.tasks._encoder import ExportedEncoderTask
from export.tasks.base import Label, Prediction, Reference, config_labels, label_head
from export.tasks.trained import Baseline, TrainedTask
from serving.records import parse_json
from serving.reporting import logger
from serving.runtime.tasks.text_classification import TextClassification
from serving.runtime.types import Arrays, Features, Flags, JsonValue, Setting

if TYPE_CHECKING:
    import numpy.typing as npt

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
"""Values of ``problem_type`` in ``transformers``."""
CLOSE = 1e-4
"""Two scores, or a score and the threshold, count as tied if they differ by less; predicted numbers count as equal."""
MOST_CLASSES = 20
"""Most different whole numbers that may be classes which a program wrote with a fraction."""
SAME_NUMBER = 0.05
"""Largest difference of two numbers that agree, as a share of the range of the original's numbers."""


@dataclass(frozen=True, kw_only=True)
class TextClassificationTask(ExportedEncoderTask[TextClassification], TrainedTask):
    """Trains and evaluates text classification.

    Attributes:
        problem_type: :data:`SINGLE_LABEL`, :data:`MULTI_LABEL` or :data:`REGRESSION`.
        threshold: Multi-label: a label with a higher score is one of the row's.
    """

    problem_type: str = SINGLE_LABEL
    threshold: float = 0.5

    name: ClassVar[str] = TextClassification.name
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    served_class: ClassVar[type[TextClassification]] = TextClassification
    fits_length: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = True
    metric_note: ClassVar[str] = "macro: unweighted mean over the labels; weighted: mean by their rows; micro: all rows together"
    settings: ClassVar[Mapping[str, Setting]] = {
        "threshold": Setting(float, minimum=0, help="Multi-label: score above which a row has a label.")
    }
    pipeline_options: ClassVar[Mapping[str, object]] = {"top_k": None}

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the label names in the order of the logits."""
        return tuple(map(str, self.served.labels))

    @classmethod
    def from_config(cls, config: Mapping[str, object], *, pair: bool = False) -> Self:
        """Choose the kind of labels as the pipeline of ``transformers`` does."""
        labels = config_labels(config)
        problem = config.get("problem_type")
        names = list(map(str, labels))
        if len(set(names)) != len(names):
            raise ValueError(f"its labels are not all different: {', '.join(names)}")
        if problem == REGRESSION or (problem != MULTI_LABEL and len(labels) == 1):
            if len(labels) > 1:
                raise ValueError(
                    f"it predicts {len(labels)} numbers per row, {', '.join(names)}, but only one number can be evaluated"
                )
            # transformers trains a single label as regression by default, but the pipeline then applies a sigmoid
            return cls._of(labels, "none" if problem == REGRESSION else "sigmoid", REGRESSION, pair=pair)
        if problem == MULTI_LABEL:
            return cls._of(labels, "sigmoid", MULTI_LABEL, pair=pair)
        return cls._of(labels, "softmax", SINGLE_LABEL, pair=pair)

    def idle_settings(self) -> Mapping[str, str]:
        """Return the threshold, unless a row may have several labels."""
        if self.problem_type == MULTI_LABEL:
            return {}
        found = "the model predicts a number" if self.problem_type == REGRESSION else "each row has exactly one label"
        return {"threshold": f"{found}, and a threshold is for rows with any number of labels"}

    @classmethod
    def checkpoint_settings(
        cls,
        config: Mapping[str, object],
        files: Mapping[str, object],  # noqa: ARG003 - the config is enough
        chosen: Mapping[str, JsonValue],
    ) -> dict[str, JsonValue]:
        """Read ``return_all_scores``, which the pipeline of ``transformers`` reads too."""
        return {"return_all_scores": bool(config.get("return_all_scores")), **chosen}

    @classmethod
    def from_labels(cls, labels: Sequence[Label], *, names: Sequence[str], pair: bool) -> Self:
        """Choose the kind of labels: numbers with a fraction, lists, or single names."""
        if any(isinstance(label, float) for label in labels):
            _check_numbers(sorted(set(cast("Sequence[float]", labels))))
            return cls._of(("score",), "none", REGRESSION, pair=pair)
        several = any(isinstance(label, list) for label in labels)
        rows = cast("Sequence[list[str | int]]", labels if several else [[label] for label in labels])
        found = {one for row in rows for one in row}
        if len({type(one) for one in found}) > 1:  # single labels have one type: the reader of the rows checked it
            raise ValueError("some of its labels are names, others whole numbers")
        if len({frozenset(row) for row in rows}) < 2:
            only = ", ".join(map(repr, sorted(found))) or "none"
            same = f"the same labels in every row, {only}" if several else f"one label only, {only}"
            raise ValueError(f"{same}: there is nothing to tell apart")
        known = tuple(names) or tuple(map(str, sorted(found)))
        return cls._of(known, "sigmoid", MULTI_LABEL, pair=pair) if several else cls._of(known, "softmax", SINGLE_LABEL, pair=pair)

    @classmethod
    def _of(cls, labels: tuple[str | int, ...], function_to_apply: str, problem_type: str, *, pair: bool) -> Self:
        served = TextClassification(labels=labels, function_to_apply=function_to_apply, pair=pair)
        return cls(served=served, problem_type=problem_type)

    @classmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read a label: a name, a number, or a list of names (also as JSON)."""
        if isinstance(label, list) or (isinstance(label, str) and label.startswith("[")):
            return texts, _read_list(label)
        if isinstance(label, bool):
            return texts, str(label)
        if isinstance(label, float) and math.isfinite(label):
            return texts, label
        if isinstance(label, int) or (isinstance(label, str) and label.strip()):
            return texts, label
        if label is None or isinstance(label, str):
            raise ValueError("the label is empty")
        found = str(label) if isinstance(label, float) else f"of type {type(label).__name__}"
        raise ValueError(f"the label is {found}, not a name, a number or a list of names")

    def reference(self, label: Label) -> Reference:
        """Return a number, the positions of several labels, or the position of one."""
        if self.problem_type == REGRESSION:
            if not isinstance(label, int | float):
                raise ValueError(f"label {label!r:.80} is not a number")
            return float(label)
        if self.problem_type == MULTI_LABEL:
            return sorted({self._position(one) for one in (label if isinstance(label, list) else [label])})
        if isinstance(label, list):
            raise ValueError(f"label {label!r:.80} is a list, and a row has one of {', '.join(self.labels)}")
        return self._position(label)

    def is_reference(self, value: object) -> bool:
        """Accept a float, a list of positions, or a position."""
        if self.problem_type == REGRESSION:
            return isinstance(value, float)
        found = value if self.problem_type == MULTI_LABEL else [value]
        return isinstance(found, list) and all(isinstance(one, int) and 0 <= one < len(self.labels) for one in found)

    def _position(self, label: Label) -> int:
        """Find a label. A whole number that is not a name is a position: data sets commonly hold those."""
        if isinstance(label, float) and label.is_integer():
            label = int(label)  # csv files that pandas wrote have 1.0 for 1
        if not isinstance(label, str | int) or label not in self._positions:
            hint = (
                " (a negative label means that the labels of this split are withheld: use another split)"
                if label in (-1, "-1")
                else ""
            )
            raise ValueError(f"unknown label {label!r}, known labels: {', '.join(self.labels)}{hint}")
        return self._positions[label]

    @cached_property
    def _positions(self) -> dict[str | int, int]:
        names: dict[str | int, int] = {name: index for index, name in enumerate(self.labels)}
        if all(name.lstrip("-").isdecimal() for name in self.labels):
            return {**names, **{int(name): index for index, name in enumerate(self.labels)}}
        return {**names, **{index: index for index in names.values()}}

    # -- training and evaluation ----------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        """Return the metric of the kind of labels."""
        return {SINGLE_LABEL: "classification", MULTI_LABEL: "multi_label", REGRESSION: "regression"}[self.problem_type]

    @property
    def default_metric(self) -> str:
        """Return accuracy, micro F1 or Spearman's correlation."""
        return {SINGLE_LABEL: "accuracy", MULTI_LABEL: "f1_micro", REGRESSION: "spearman"}[self.problem_type]

    @property
    def selectable_metrics(self) -> tuple[str, ...]:
        """Return the figures of the kind of labels."""
        if self.problem_type == REGRESSION:
            return ("spearman", "pearson", "negative_mse")
        if self.problem_type == MULTI_LABEL:
            return ("f1_micro", "f1_macro", "exact")
        shared = ("accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro", "matthews_correlation")
        return (*shared, "f1_positive") if len(self.labels) == 2 else shared

    def baseline(self, training: Sequence[Reference], evaluated: Sequence[Reference]) -> Baseline:
        """Predict the most frequent label of the training rows in every row; regression: their mean."""
        if self.problem_type == REGRESSION:
            mean = float(np.mean(cast("Sequence[float]", training)))
            return Baseline(f"always {mean:.4g}, the mean of the training rows", [mean] * len(evaluated))
        rows = cast("Sequence[list[int]]", training if self.problem_type == MULTI_LABEL else [[label] for label in training])
        counts = Counter(label for row in rows for label in row)
        if not counts:
            return Baseline("no label, as in the training rows", [[]] * len(evaluated))
        (best, _), *_ = counts.most_common(1)
        prediction: Prediction = [best] if self.problem_type == MULTI_LABEL else best
        return Baseline(f"always {self.labels[best]}, the most frequent label of the training rows", [prediction] * len(evaluated))

    def head(self) -> dict[str, object]:
        """Return the labels and the problem type."""
        return {**label_head(self.labels), "problem_type": self.problem_type}

    def targets(self, features: Features, references: Sequence[Reference]) -> dict[str, list[JsonValue]]:  # noqa: ARG002
        """Return the references; multi-label: one 0 or 1 per label."""
        if self.problem_type != MULTI_LABEL:
            return {"labels": list(references)}
        rows = cast("Sequence[list[int]]", references)
        return {"labels": [[float(index in row) for index in range(len(self.labels))] for row in rows]}

    def fitted_settings(self) -> Mapping[str, Sequence[JsonValue]]:
        """Multi-label: try thresholds from 0.05 to 0.95."""
        others = sorted((step / 20 for step in range(1, 20)), key=lambda threshold: abs(threshold - self.threshold))
        return {"threshold": (self.threshold, *others)} if self.problem_type == MULTI_LABEL else {}

    def predictions(self, answers: Arrays) -> list[Prediction]:
        """Return a number, the positions of several labels, or the position of one."""
        scores = answers["SCORES"]
        if self.problem_type == REGRESSION:
            return cast("list[Prediction]", scores[:, 0].tolist())
        if self.problem_type == MULTI_LABEL:
            return [np.flatnonzero(row).tolist() for row in scores > self.threshold]
        return cast("list[Prediction]", scores.argmax(axis=-1).tolist())

    def confidence(self, answers: Arrays) -> npt.NDArray[np.float64] | None:
        """Return the score of the best label, where scores are probabilities."""
        if self.served.function_to_apply != "softmax":
            return None
        return cast("npt.NDArray[np.float64]", answers["SCORES"].max(axis=-1).astype(np.float64))

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Compare labels; numbers agree within :data:`SAME_NUMBER`."""
        ours, theirs = answers["SCORES"], original["SCORES"]
        if self.problem_type == REGRESSION:
            same = np.abs(ours - theirs)[:, 0] <= max(SAME_NUMBER * float(np.ptp(theirs)), CLOSE)
        elif self.problem_type == MULTI_LABEL:
            same = ((ours > self.threshold) == (theirs > self.threshold)).all(axis=-1)
        else:
            same = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
        return cast("npt.NDArray[np.float64]", same.astype(np.float64))

    def score_changes(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64] | None:
        """Return the changes of the original's labels; of a multi-label row the largest change of any label."""
        if self.problem_type == REGRESSION or self.served.function_to_apply == "none":
            return None
        changes = np.abs(answers["SCORES"].astype(np.float64) - original["SCORES"])
        if self.problem_type == MULTI_LABEL:
            return cast("npt.NDArray[np.float64]", changes.max(axis=-1))
        best = original["SCORES"].argmax(axis=-1)[:, None]
        return cast("npt.NDArray[np.float64]", np.take_along_axis(changes, best, axis=-1)[:, 0])

    def ties(self, original: Arrays) -> Flags:
        """Find rows whose two best scores, or whose score and the threshold, are closer than :data:`CLOSE`."""
        scores = original["SCORES"]
        if self.problem_type == REGRESSION:
            return np.zeros(len(scores), dtype=np.bool_)
        if self.problem_type == MULTI_LABEL:
            return cast("Flags", (np.abs(scores - self.threshold) < CLOSE).any(axis=-1))
        ranked = np.sort(scores, axis=-1)
        return cast("Flags", ranked[:, -1] - ranked[:, -2] < CLOSE)


def _check_numbers(values: Sequence[float]) -> None:
    """Check that the different numbers of a training set are scores, and not classes that a program wrote as ``0.0`` and ``1.0``.

    Raises:
        ValueError: There are too few for scores.
    """
    if len(values) < 2:
        raise ValueError(f"every row has the number {values[0]!r}: there is nothing to learn")
    if len(values) > MOST_CLASSES or not all(map(float.is_integer, values)):
        return
    classes = f"{', '.join(f'{value:.0f}' for value in values[:3])}{' …' if len(values) > 3 else ''}"
    if len(values) == 2:
        raise ValueError(
            f"the labels are {values[0]!r} and {values[1]!r}, which are too few numbers to predict a number (regression): "
            f"for two classes, write {' and '.join(f'{value:.0f}' for value in values)}, or names"
        )
    found = f"{', '.join(map(repr, values[:3]))}{' …' if len(values) > 3 else ''}"
    logger.warning(
        f"the labels are numbers such as {found}: the model will predict a number (regression); "
        f"for {len(values)} classes, write {classes}, or names"
    )


def _read_list(label: object) -> list[JsonValue]:
    try:
        names = parse_json(label) if isinstance(label, str) else label
    except ValueError:
        names = None
    if isinstance(names, list) and _is_multi_hot(names):
        raise ValueError(
            f"the label {names!r:.80} has a 1 or 0 for each label: list the labels of the row instead, "
            "or give one column per label and name each with --label-column"
        )
    if not isinstance(names, list) or not all(type(name) in (str, int) and str(name).strip() for name in names):
        raise ValueError('the label is not a list of names or whole numbers, written as JSON in text files: ["joy", "fear"]')
    return names


def _is_multi_hot(values: list[object]) -> bool:
    """Return whether a list has 1 or 0 for each label: positions of labels are whole numbers, and none is there twice.

    A data set may name the two values ``"0"`` and ``"1"``.
    """
    if not all(isinstance(value, int | float | str) and value in (0, 1, "0", "1") for value in values):
        return False
    return len(set(values)) < len(values) or any(isinstance(value, bool | float) for value in values)


TASK = TextClassificationTask
