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

from ..types import Arrays, Floats, JsonValue, Origins, Setting, Tensor, Text, TextColumns
from ._labels import softmax
from ._strings import read_strings, write_strings
from ._tokenizer_options import STRATEGIES, TokenizerOptionsTask


@dataclass(frozen=True, kw_only=True)
class TextClassification(TokenizerOptionsTask):
    """Serves text classification.

    Attributes:
        labels: Label names in the order of the logits, as the checkpoint's config has them. ``LABEL`` is a string in any case.
        function_to_apply: ``softmax``, ``sigmoid`` or ``none``, chosen as the pipeline of ``transformers`` chooses it.
        top_k: Number of labels of a row that the client lists, best first. None: only the best label. ``SCORES`` always has all.
        return_all_scores: Whether the client lists all labels, in the order of the logits, where there is no ``top_k``.
        json_texts: Whether a request's ``TEXT`` is a JSON list of one or two texts, and ``TEXT_PAIR`` is not read. So a model of
            pairs takes a single text. A model of single texts takes no pair: its graph cannot tell two texts apart.
    """

    labels: tuple[str | int, ...]
    function_to_apply: str
    top_k: int | None = None
    return_all_scores: bool = False
    json_texts: bool = False

    name: ClassVar[str] = "text-classification"
    options: ClassVar[Mapping[str, Setting]] = {
        **TokenizerOptionsTask.options,
        "function_to_apply": Setting(str, choices=("softmax", "sigmoid", "none"), help="Function that turns logits into scores."),
        "top_k": Setting(int, help="Number of labels that the client lists, best first."),
        "truncation_strategy": Setting(str, choices=STRATEGIES, help="Which text of a pair is truncated."),
        "json_texts": Setting(bool, help="TEXT is a JSON list of one or two texts, and TEXT_PAIR is not read."),
    }
    request_only: ClassVar[frozenset[str]] = TokenizerOptionsTask.request_only | {"truncation_strategy", "json_texts"}
    presentation_options: ClassVar[frozenset[str]] = frozenset({"top_k"})
    client_options: ClassVar[tuple[str, ...]] = ("return_all_scores", "text_pair")

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

    def texts(self, columns: TextColumns) -> Sequence[Text]:
        """Convert request rows to rows for the tokenizer: each text, or each pair of texts."""
        return [self._read_texts(row) for row in columns[0]] if self.json_texts else super().texts(columns)

    def _read_texts(self, row: str) -> Text:
        """Read a JSON list of one or two texts.

        Raises:
            ValueError: It is no such list, or there are more than the model takes.
        """
        texts = read_strings(row, "TEXT")
        if len(texts) > 1 + self.pair:
            raise ValueError(f"TEXT holds {len(texts)} texts, and the model takes {1 + self.pair}")
        return (texts[0], texts[1]) if len(texts) == 2 else texts[0]

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
        return np.array([str(label).encode() for label in self.labels], dtype=np.object_)

    # -- the client -----------------------------------------------------------------------------------------------------------

    def parse_call(self, arguments: tuple[object, ...], given: Mapping[str, object]) -> tuple[object, dict[str, object]]:
        """Take ``text_pair=…`` too, the second text of every row."""
        inputs, options = super().parse_call(arguments, given)
        text_pair = options.get("text_pair")
        if text_pair is None:
            return inputs, options
        rows = inputs if isinstance(inputs, list | tuple) else [inputs]
        if not all(isinstance(row, str) for row in rows):
            raise TypeError("text_pair=… goes with texts that are strings: give it as {'text': …, 'text_pair': …} otherwise")
        pairs = [{"text": row, "text_pair": text_pair} for row in rows]
        return (pairs if isinstance(inputs, list | tuple) else pairs[0]), options

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Take strings or dicts with ``text``; for pairs, dicts with ``text`` and ``text_pair``, or ``[[text, text_pair]]``."""
        return [self._parse_row(row) for row in (inputs if isinstance(inputs, list | tuple) else [inputs])]

    def _parse_row(self, row: object) -> tuple[str, ...]:
        texts = _row_texts(row)
        if len(texts) > 1 + self.pair:
            raise ValueError(f"this model was exported for single texts, and its graph cannot tell two texts apart: {row!r:.80}")
        return texts

    def request_rows(self, rows: Sequence[tuple[str, ...]]) -> tuple[Sequence[tuple[str, ...]], dict[str, JsonValue]]:
        """Write the rows of a model of pairs as JSON if one of them is a single text."""
        if not self.pair or all(len(row) == 2 for row in rows):
            return rows, {}
        return [(write_strings(row), "") for row in rows], {"json_texts": True}

    def sanitize_parameters(self, given: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
        """Accept the function's name in any case, or as an enumeration member, and read how many labels are listed.

        As in the pipeline, ``return_all_scores`` has no effect beside ``top_k``, and leaves the order to the options before it.
        """
        parameters, shown = super().sanitize_parameters(given)
        if isinstance(function := parameters.get("function_to_apply"), str):
            parameters["function_to_apply"] = str(getattr(function, "value", function)).lower()
        if "top_k" in shown:
            return parameters, {"top_k": shown["top_k"], "ranked": True}
        if (everything := shown.get("return_all_scores")) is not None:
            return parameters, {"top_k": None if everything else 1}
        return parameters, {}

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:
        """Return ``{"label", "score"}`` per row, or where ``top_k`` is not 1, or ``ranked``, a list of them.

        The list has the best ``top_k`` labels (None: all), best first, or not ``ranked`` all of them in the order of the logits.
        """
        top_k = cast(
            "int | None", options.get("top_k", (None if self.return_all_scores else 1) if self.top_k is None else self.top_k)
        )
        ranked = options.get("ranked", self.top_k is not None)
        if top_k == 1 and not ranked:
            best = answers["SCORES"].argmax(axis=-1).tolist()
            scores = answers["SCORE"][:, 0].tolist()
            return [{"label": self.labels[place], "score": score} for place, score in zip(best, scores, strict=True)]
        rows = [[*zip(self.labels, row, strict=True)] for row in answers["SCORES"].tolist()]
        if ranked:
            rows = [sorted(row, key=lambda item: -item[1])[:top_k] for row in rows]
        return [[{"label": label, "score": score} for label, score in row] for row in rows]

    def format_result(self, inputs: object, answers: Sequence[object], options: Mapping[str, object]) -> object:
        """Return a list for a single string too where the call has no ``top_k``, as the pipeline does."""
        if (isinstance(inputs, str) or (isinstance(inputs, dict) and "text_pair" in options)) and "top_k" not in options:
            return answers
        return super().format_result(inputs, answers, options)


def _row_texts(row: object) -> tuple[str, ...]:
    """Return the one or two texts of a row of the pipeline.

    Raises:
        TypeError: The row has other keys.
        ValueError: It has another form.
    """
    match row:
        case str():
            return (row,)
        case [[str(text), str(text_pair)]]:  # an older form
            return (text, text_pair)
        case {"text": str(text), "text_pair": str(text_pair), **rest} if not rest:
            return (text, text_pair)
        case {"text": str(text), **rest} if not rest or rest == {"text_pair": None}:  # evaluators write None for single texts
            return (text,)
        case {"text": _, **rest} if rest.keys() - {"text_pair"}:
            raise TypeError(f"a row has the keys text and text_pair, not {', '.join(map(repr, rest))}: {row!r:.80}")
    raise ValueError(f"each row must be a string, or {{'text': …}} with strings, for pairs with 'text_pair' too, not {row!r:.80}")


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):  # for logits far below 0; the score is 0 then
        return cast("Floats", 1.0 / (1.0 + np.exp(-logits)))


def _none(logits: Floats) -> Floats:
    return logits


_FUNCTIONS = {"softmax": softmax, "sigmoid": _sigmoid, "none": _none}

TASK = TextClassification
