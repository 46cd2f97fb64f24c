"""Text classification: one text or a pair of texts → label, its score, the scores of all labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from .base import Arrays, Task, Tensor, Text

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11


@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """Args:
    labels: label names in the order of the logits.
    function_to_apply: ``softmax``, ``sigmoid`` or ``none``, chosen as ``transformers``' pipeline chooses it.
    pair: the checkpoint was fine-tuned on two texts; requests then carry ``TEXT_PAIR`` too.
    """

    labels: tuple[str, ...]
    function_to_apply: str

    name: ClassVar[str] = "text-classification"
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    metric: ClassVar[str] = "classification"
    main_metric: ClassVar[str] = "accuracy"

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool = False) -> Self:
        id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # what transformers assumes where none are given
        labels = tuple(label for _, label in sorted((int(index), str(label)) for index, label in id2label.items()))
        problem = config.get("problem_type")
        if problem == "regression":
            function = "none"
        elif problem == "multi_label_classification" or len(labels) == 1:
            function = "sigmoid"
        else:
            function = "softmax"
        return cls(labels=labels, function_to_apply=function, pair=pair)

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
        return text | {"TEXT_PAIR": "People enjoyed the film."} if self.pair else text

    def texts(self, columns: Sequence[Sequence[str]]) -> Sequence[Text]:
        return cast(Sequence[Text], list(zip(*columns, strict=True))) if self.pair else columns[0]

    def answers(self, logits: npt.NDArray[np.float32]) -> Arrays:
        scores = _APPLY[self.function_to_apply](logits)
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
        match row:
            case str() if not self.pair:
                return (row,)
            case {"text": str(text), **rest} if not self.pair and not rest:
                return (text,)
            case {"text": str(text), "text_pair": str(text_pair), **rest} if self.pair and not rest:
                return (text, text_pair)
        wanted = "{'text': …, 'text_pair': …}" if self.pair else "a string or {'text': …}"
        raise TypeError(f"each row must be {wanted}, not {row!r:.80}")

    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        """``{"label", "score"}`` per row; where ``top_k`` is given the best ``top_k`` (None: all) as a list, best first."""
        unknown = set(options) - {"top_k"}
        if unknown:
            raise TypeError(f"text-classification has no option {', '.join(sorted(unknown))}; it has top_k")
        if "top_k" not in options:
            labels, scores = answers["LABEL"][:, 0], answers["SCORE"][:, 0].tolist()
            return [{"label": label.decode(), "score": score} for label, score in zip(labels, scores, strict=True)]
        top_k = options["top_k"]
        if not (top_k is None or (isinstance(top_k, int) and top_k > 0)):
            raise TypeError(f"top_k must be a whole number above 0, or None for all labels, not {top_k!r}")
        rows = answers["SCORES"].tolist()
        ranked = [sorted(zip(self.labels, row, strict=True), key=lambda item: -item[1])[:top_k] for row in rows]
        return [[{"label": label, "score": score} for label, score in row] for row in ranked]

    def pipeline_result(self, inputs: Any, answers: list[Any], options: Mapping[str, Any]) -> Any:
        """As the pipeline does it: a single string without ``top_k`` gives a list too."""
        if isinstance(inputs, str) and "top_k" not in options:
            return answers
        return super().pipeline_result(inputs, answers, options)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    scores: npt.NDArray[np.float32] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return cast("npt.NDArray[np.float32]", 1.0 / (1.0 + np.exp(-logits)))


def _none(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return logits


_APPLY = {"softmax": _softmax, "sigmoid": _sigmoid, "none": _none}

TASK = TextClassification
