"""Text classification: one text, or a pair of texts → label, its score, and the scores of all labels.

The labels are exclusive, independent (multi-label), or a single number (regression).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt

from ..types import Arrays, Floats, JsonValue, Option, Origins, Tensor
from ._labels import softmax
from .base import ServedTask


@dataclass(frozen=True, kw_only=True)
class TextClassification(ServedTask):
    """Serves text classification.

    Attributes:
        labels: Label names in the order of the logits.
        function_to_apply: ``softmax``, ``sigmoid`` or ``none``, chosen as the pipeline of ``transformers`` chooses it.
        top_k: Number of labels of a row that the client lists, best first. None: only the best label. ``SCORES`` always has all.
    """

    labels: tuple[str, ...]
    function_to_apply: str
    top_k: int | None = None

    name: ClassVar[str] = "text-classification"
    options: ClassVar[Mapping[str, Option]] = {
        **ServedTask.options,
        "function_to_apply": Option(str, choices=("softmax", "sigmoid", "none"), help="Function that turns logits into scores."),
        "top_k": Option(int, minimum=1, help="Number of labels that the client lists, best first."),
    }
    presentation_options: ClassVar[frozenset[str]] = frozenset({"top_k"})

    def inputs(self) -> tuple[Tensor, ...]:
        """Return ``TEXT``, and ``TEXT_PAIR`` where the model takes pairs."""
        text = Tensor("TEXT", "TYPE_STRING")
        return (text, Tensor("TEXT_PAIR", "TYPE_STRING")) if self.pair else (text,)

    def outputs(self) -> tuple[Tensor, ...]:
        """Return ``LABEL``, ``SCORE`` and ``SCORES``."""
        return (
            Tensor("LABEL", "TYPE_STRING"),
            Tensor("SCORE", "TYPE_FP32"),
            Tensor("SCORES", "TYPE_FP32", (len(self.labels),)),
        )

    @property
    def example(self) -> dict[str, str]:
        """Return a short review, or a pair of sentences."""
        text = {"TEXT": "A warm, funny and thoroughly engaging film."}
        return {**text, "TEXT_PAIR": "People enjoyed the film."} if self.pair else text

    def postprocess(self, outputs: Arrays, origins: Origins) -> Arrays:  # noqa: ARG002 - one model row each
        """Apply the function to the logits and find the best label."""
        scores = _FUNCTIONS[self.function_to_apply](outputs["logits"])
        best = scores.argmax(axis=-1)
        return {
            "LABEL": self._label_bytes[best][:, None],
            "SCORE": scores.max(axis=-1, keepdims=True),
            "SCORES": scores,
        }

    @cached_property
    def _label_bytes(self) -> npt.NDArray[np.object_]:
        return np.array([label.encode() for label in self.labels], dtype=np.object_)

    # -- the client -----------------------------------------------------------------------------------------------------------

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Take strings or dicts with ``text``; for pairs, dicts with ``text`` and ``text_pair``."""
        return [self._parse_row(row) for row in (inputs if isinstance(inputs, list | tuple) else [inputs])]

    def _parse_row(self, row: object) -> tuple[str, ...]:
        if isinstance(row, dict) and row.get("text_pair", "") is None:  # evaluators write this for single texts
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

    def sanitize_parameters(self, given: Mapping[str, object]) -> dict[str, JsonValue]:
        """Accept the function's name in any case, or as an enumeration member, as the pipeline does."""
        parameters = super().sanitize_parameters(given)
        if isinstance(function := parameters.get("function_to_apply"), str):
            parameters["function_to_apply"] = str(getattr(function, "value", function)).lower()
        return parameters

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:
        """Return ``{"label", "score"}`` per row; with ``top_k``, a list of the best ``top_k`` (None: all), best first."""
        self.refuse_options(options)
        if self._best_only(options):
            labels, scores = answers["LABEL"][:, 0], answers["SCORE"][:, 0].tolist()
            return [{"label": label.decode(), "score": score} for label, score in zip(labels, scores, strict=True)]
        top_k = cast("int | None", options.get("top_k", self.top_k))
        rows = answers["SCORES"].tolist()
        ranked = [sorted(zip(self.labels, row, strict=True), key=lambda item: -item[1])[:top_k] for row in rows]
        return [[{"label": label, "score": score} for label, score in row] for row in ranked]

    def format_result(self, inputs: object, answers: Sequence[object], options: Mapping[str, object]) -> object:
        """Return a list for a single string without ``top_k`` too, as the pipeline does."""
        if isinstance(inputs, str) and self._best_only(options):
            return answers
        return super().format_result(inputs, answers, options)

    def _best_only(self, options: Mapping[str, object]) -> bool:
        """Tell whether a row's answer is one label and no list."""
        return "top_k" not in options and self.top_k is None


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):  # for logits far below 0; the score is 0 then
        return cast("Floats", 1.0 / (1.0 + np.exp(-logits)))


def _none(logits: Floats) -> Floats:
    return logits


_FUNCTIONS = {"softmax": softmax, "sigmoid": _sigmoid, "none": _none}

TASK = TextClassification
