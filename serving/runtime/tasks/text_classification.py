"""Text classification: one text or a pair of texts → label, its score, the scores of all labels.

Three kinds of it, by the labels: one of several, any of several (multi-label), or a number (regression).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from ._labels import label_names, softmax
from .base import Arrays, Features, Option, Options, Origins, Task, Tensor

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

ONE, ANY, NUMBER = "single_label_classification", "multi_label_classification", "regression"
"""What ``transformers`` calls the three kinds in ``problem_type``."""
CLOSE = 1e-4
"""Scores nearer to each other than this (or to the threshold) are a close call; a number predicted this near is the same."""
SAME_NUMBER = 0.05
"""Share of the range of the original's numbers by which one may be off and still agree."""


@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """Args:
    labels: label names in the order of the logits.
    function_to_apply: ``softmax``, ``sigmoid`` or ``none``, chosen as ``transformers``' pipeline chooses it.
    pair: the checkpoint was fine-tuned on two texts; requests then carry ``TEXT_PAIR`` too.
    problem_type: :data:`ONE`, :data:`ANY` or :data:`NUMBER`.
    threshold: multi-label: a label with a higher score is one of the row's.
    top_k: how many labels of a row the client lists, best first; None: the best one alone. ``SCORES`` has them all either way.
    """

    labels: tuple[str, ...]
    function_to_apply: str
    problem_type: str = ONE
    threshold: float = 0.5
    top_k: int | None = None

    name: ClassVar[str] = "text-classification"
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    cut: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        **Task.options,
        "function_to_apply": Option(str, choices=("softmax", "sigmoid", "none")),
        "top_k": Option(int, minimum=1),
    }
    setup: ClassVar[Mapping[str, Option]] = {"threshold": Option(float, minimum=0)}
    shaping: ClassVar[frozenset[str]] = frozenset({"top_k"})

    pipeline_options: ClassVar[Mapping[str, Any]] = {"top_k": None}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool = False) -> Self:
        labels = label_names(config)
        problem = config.get("problem_type")
        if len(set(labels)) != len(labels):
            raise ValueError(f"its labels are not all different: {', '.join(labels)}")
        if problem == NUMBER or (problem != ANY and len(labels) == 1):
            if len(labels) > 1:
                raise ValueError(f"it predicts {len(labels)} numbers a row, {', '.join(labels)}: rows can be held against one only")
            # trained towards a number even where the config does not say so, but the pipeline squashes it then
            return cls(labels=labels, function_to_apply="none" if problem == NUMBER else "sigmoid", pair=pair, problem_type=NUMBER)
        if problem == ANY:
            return cls(labels=labels, function_to_apply="sigmoid", pair=pair, problem_type=ANY)
        return cls(labels=labels, function_to_apply="softmax", pair=pair)

    @classmethod
    def from_labels(cls, labels: Sequence[Any], *, names: Sequence[str], pair: bool) -> Self:
        if any(isinstance(label, float) for label in labels):
            if len(set(labels)) < 2:
                raise ValueError(f"every row has the number {labels[0]!r}: there is nothing to learn")
            return cls(labels=("score",), function_to_apply="none", pair=pair, problem_type=NUMBER)
        several = any(isinstance(label, list) for label in labels)
        found = {one for label in labels for one in label} if several else set(labels)
        if len({type(one) for one in found}) > 1:  # single labels are of one type: whoever read the rows saw to it
            raise ValueError("some of its labels are names, others whole numbers")
        if len({frozenset(label) if several else label for label in labels}) < 2:
            only = ", ".join(map(repr, sorted(found))) or "none"
            same = f"the same labels in every row, {only}" if several else f"one label only, {only}"
            raise ValueError(f"{same}: there is nothing to tell apart")
        known = tuple(names) or tuple(map(str, sorted(found)))
        if several:
            return cls(labels=known, function_to_apply="sigmoid", pair=pair, problem_type=ANY)
        return cls(labels=known, function_to_apply="softmax", pair=pair)

    @classmethod
    def read_row(cls, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        if isinstance(label, list) or (isinstance(label, str) and label.startswith("[")):
            return texts, _read_list(label)
        if isinstance(label, bool):
            return texts, str(label)
        if isinstance(label, float) and math.isfinite(label):
            return texts, label
        if isinstance(label, int) or (isinstance(label, str) and label):
            return texts, label
        if label in (None, ""):
            raise ValueError("the label is empty")
        found = str(label) if isinstance(label, float) else f"of type {type(label).__name__}"
        raise ValueError(f"the label is {found}, not a name, a number or a list of names")

    def reference(self, label: Any) -> Any:
        if self.problem_type == NUMBER:
            if not isinstance(label, int | float):
                raise ValueError(f"label {label!r:.80} is no number")
            return float(label)
        if self.problem_type == ANY:
            return sorted({self._position(one) for one in (label if isinstance(label, list) else [label])})
        if isinstance(label, list):
            raise ValueError(f"label {label!r:.80} is a list, and a row has one of {', '.join(self.labels)}")
        return self._position(label)

    def is_reference(self, value: Any) -> bool:
        if self.problem_type == NUMBER:
            return isinstance(value, float)
        found = value if self.problem_type == ANY else [value]
        return isinstance(found, list) and all(isinstance(one, int) and 0 <= one < len(self.labels) for one in found)

    def _position(self, label: Any) -> int:
        """A whole number that is no name is a position: data sets commonly hold those."""
        if label not in self._positions:
            hint = " (a negative label means that the labels are withheld: use another split)" if label in (-1, "-1") else ""
            raise ValueError(f"unknown label {label!r}, known are {', '.join(self.labels)}{hint}")
        return self._positions[label]

    @cached_property
    def _positions(self) -> dict[Any, int]:
        names = {name: index for index, name in enumerate(self.labels)}
        if all(name.lstrip("-").isdecimal() for name in self.labels):
            return {**names, **{int(name): index for name, index in names.items()}}
        return {**names, **{index: index for index in names.values()}}

    def inputs(self) -> tuple[Tensor, ...]:
        text = Tensor("TEXT", "TYPE_STRING")
        return (text, Tensor("TEXT_PAIR", "TYPE_STRING")) if self.pair else (text,)

    def outputs(self) -> tuple[Tensor, ...]:
        return (
            Tensor("LABEL", "TYPE_STRING"),
            Tensor("SCORE", "TYPE_FP32"),
            Tensor("SCORES", "TYPE_FP32", (len(self.labels),)),
        )

    @property
    def example(self) -> dict[str, str]:
        text = {"TEXT": "A warm, funny and thoroughly engaging film."}
        return {**text, "TEXT_PAIR": "People enjoyed the film."} if self.pair else text

    def answers(self, outputs: Arrays, origins: Origins, options: Options) -> Arrays:  # noqa: ARG002 - one row each
        scores = _APPLY[options["function_to_apply"]](outputs["logits"])
        best = scores.argmax(axis=-1)
        return {
            "LABEL": self._label_bytes[best][:, None],
            "SCORE": scores.max(axis=-1, keepdims=True),
            "SCORES": scores,
        }

    @cached_property
    def _label_bytes(self) -> npt.NDArray[np.object_]:
        return np.array([label.encode() for label in self.labels], dtype=np.object_)

    def request_rows(self, inputs: Any) -> list[tuple[str, ...]]:
        return [self._request_row(row) for row in (inputs if isinstance(inputs, list | tuple) else [inputs])]

    def _request_row(self, row: Any) -> tuple[str, ...]:
        if isinstance(row, dict) and row.get("text_pair", "") is None:  # evaluators say so of single texts
            row = {name: value for name, value in row.items() if name != "text_pair"}
        match row:
            case str() if not self.pair:
                return (row,)
            case {"text": str(text), **rest} if not self.pair and not rest:
                return (text,)
            case {"text": str(text), "text_pair": str(text_pair), **rest} if self.pair and not rest:
                return (text, text_pair)
        wanted = "{'text': …, 'text_pair': …}" if self.pair else "a string or {'text': …}"
        raise TypeError(f"each row must be {wanted}, not {row!r:.80}")

    def asked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """As the pipeline reads it, a function's name may be in capitals, or an enumeration's member."""
        asked = super().asked(given)
        if isinstance(function := asked.get("function_to_apply"), str):
            asked["function_to_apply"] = str(getattr(function, "value", function)).lower()
        return asked

    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        """``{"label", "score"}`` per row; where ``top_k`` is given the best ``top_k`` (None: all) as a list, best first."""
        self.refuse_options(options)
        if self._best_alone(options):
            labels, scores = answers["LABEL"][:, 0], answers["SCORE"][:, 0].tolist()
            return [{"label": label.decode(), "score": score} for label, score in zip(labels, scores, strict=True)]
        top_k = options.get("top_k", self.top_k)
        rows = answers["SCORES"].tolist()
        ranked = [sorted(zip(self.labels, row, strict=True), key=lambda item: -item[1])[:top_k] for row in rows]
        return [[{"label": label, "score": score} for label, score in row] for row in ranked]

    def pipeline_result(self, inputs: Any, answers: list[Any], options: Mapping[str, Any]) -> Any:
        """As the pipeline does it: a single string without ``top_k`` gives a list too."""
        if isinstance(inputs, str) and self._best_alone(options):
            return answers
        return super().pipeline_result(inputs, answers, options)

    def _best_alone(self, options: Mapping[str, Any]) -> bool:
        """Whether a row's answer is one label and no list."""
        return "top_k" not in options and self.top_k is None

    @property
    def metric(self) -> str:
        return {ONE: "classification", ANY: "multi_label", NUMBER: "correlation"}[self.problem_type]

    @property
    def main_metric(self) -> str:
        return {ONE: "accuracy", ANY: "f1", NUMBER: "spearman"}[self.problem_type]

    def head(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
            "problem_type": self.problem_type,
        }

    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:  # noqa: ARG002 - one row each
        if self.problem_type != ANY:
            return {"labels": list(references)}
        return {"labels": [[float(index in row) for index in range(len(self.labels))] for row in references]}

    def candidates(self) -> Mapping[str, Sequence[Any]]:
        others = sorted((step / 20 for step in range(1, 20)), key=lambda threshold: abs(threshold - self.threshold))
        return {"threshold": (self.threshold, *others)} if self.problem_type == ANY else {}

    def predictions(self, answers: Arrays) -> list[Any]:
        scores = answers["SCORES"]
        if self.problem_type == NUMBER:
            return cast(list[Any], scores[:, 0].tolist())
        if self.problem_type == ANY:
            return [np.flatnonzero(row).tolist() for row in scores > self.threshold]
        return cast(list[Any], scores.argmax(axis=-1).tolist())

    def confidence(self, answers: Arrays) -> npt.NDArray[np.float64] | None:
        if self.function_to_apply != "softmax":
            return None
        return cast("npt.NDArray[np.float64]", answers["SCORES"].max(axis=-1).astype(np.float64))

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        ours, theirs = answers["SCORES"], original["SCORES"]
        if self.problem_type == NUMBER:
            same = np.abs(ours - theirs)[:, 0] <= max(SAME_NUMBER * float(np.ptp(theirs)), CLOSE)
        elif self.problem_type == ANY:
            same = ((ours > self.threshold) == (theirs > self.threshold)).all(axis=-1)
        else:
            same = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
        return cast("npt.NDArray[np.float64]", same.astype(np.float64))

    def ties(self, original: Arrays) -> npt.NDArray[np.bool_]:
        scores = original["SCORES"]
        if self.problem_type == NUMBER:
            return np.zeros(len(scores), dtype=np.bool_)
        if self.problem_type == ANY:
            return cast("npt.NDArray[np.bool_]", (np.abs(scores - self.threshold) < CLOSE).any(axis=-1))
        ranked = np.sort(scores, axis=-1)
        return cast("npt.NDArray[np.bool_]", ranked[:, -1] - ranked[:, -2] < CLOSE)


def _read_list(label: Any) -> list[Any]:
    try:
        names = json.loads(label) if isinstance(label, str) else label
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(type(name) in (str, int) and name != "" for name in names):
        raise ValueError('the label is no list of names or whole numbers, written as JSON where it is text: ["joy", "fear"]')
    return names


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # of what is far below 0: the score is 0 then
        return cast("npt.NDArray[np.float32]", 1.0 / (1.0 + np.exp(-logits)))


def _none(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return logits


_APPLY = {"softmax": softmax, "sigmoid": _sigmoid, "none": _none}

TASK = TextClassification
