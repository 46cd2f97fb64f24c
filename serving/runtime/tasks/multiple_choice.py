"""Multiple choice: a text and several choices (continuations or answers) → the best choice, and the scores of all.

Each pair of the text and a choice is one model row, for which the model gives one number. The scores are the softmax over the
numbers of a request row. Rows may have any number of choices, and different numbers of them.

``transformers`` has no pipeline for this task; the answers are those of its ``AutoModelForMultipleChoice``. In the client, a row
is ``{"text": …, "choices": […]}`` and its answer ``{"choice", "score", "scores"}``: the position of the best choice, counted from
0, its score, and the scores in the order of the choices. Of equal scores the first one is the best.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..types import Arrays, Features, Integers, Origins, Tensor, Text, TextColumns
from ._candidates import first_rows, require_few, softmax_by_sample
from ._encoder import EncoderTask
from ._strings import json_column, read_strings, write_strings

if TYPE_CHECKING:
    from ..tokenization import TextEncoder


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(EncoderTask):
    """Serves multiple choice."""

    pair: bool = True

    name: ClassVar[str] = "multiple-choice"
    carries_metadata: ClassVar[bool] = True
    fan_out: ClassVar[int] = 4
    text_keys: ClassVar[tuple[str, ...]] = ("text", "choices")
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "choices": "choices"}

    def inputs(self) -> tuple[Tensor, ...]:
        """Return ``TEXT`` and ``CHOICES``, a JSON list."""
        return (Tensor("TEXT", "TYPE_STRING"), Tensor("CHOICES", "TYPE_STRING"))

    def outputs(self) -> tuple[Tensor, ...]:
        """Return ``CHOICE`` and ``SCORES``, a JSON list."""
        return (Tensor("CHOICE", "TYPE_INT64"), Tensor("SCORES", "TYPE_STRING"))

    @property
    def example(self) -> dict[str, str]:
        """Return a purpose and three ways to reach it."""
        choices = ["lift it with a crane.", "wipe it with a cloth.", "paint it."]
        return {"TEXT": "To take the dust off a shelf,", "CHOICES": write_strings(choices)}

    def long_example(self, repeats: int) -> dict[str, str]:
        """Repeat the text alone."""
        example = self.example
        return example | {"TEXT": " ".join([example["TEXT"]] * repeats)}

    def texts(self, columns: TextColumns) -> Sequence[Text]:
        """Return each text with each of its choices."""
        return self._pairs(columns)[0]

    def preprocess(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Make one model row per choice."""
        pairs, mapping = self._pairs(columns, most=encoder.most_rows)
        encodings = encoder.encode(pairs, truncation=self.truncation)
        return Features(encodings, Origins(mapping, [b""] * len(mapping)))

    @staticmethod
    def _pairs(columns: TextColumns, *, most: int | None = None) -> tuple[list[Text], Integers]:
        """Pair each text with each of its choices; return the pairs and their sample mapping.

        Raises:
            ValueError: A row has no list of choices, or more than ``most``.
        """
        choices = [read_strings(given, "CHOICES") for given in columns[1]]
        for row in choices:
            require_few(row, "CHOICES", most)
        pairs: list[Text] = [(text, one) for text, row in zip(columns[0], choices, strict=True) for one in row]
        return pairs, np.repeat(np.arange(len(choices)), [len(row) for row in choices])

    def postprocess(self, outputs: Arrays, origins: Origins) -> Arrays:
        """Compute the scores of each row's choices and find the best."""
        firsts = first_rows(origins.sample_mapping)
        scores = softmax_by_sample(outputs["logits"][:, 0], origins.sample_mapping)
        rows = [row.tolist() for row in np.split(scores, firsts[1:])] if len(firsts) else []
        best = np.array([row.index(max(row)) for row in rows], dtype=np.int64)
        return {"CHOICE": best[:, None], "SCORES": json_column(rows)}

    # -- the client -----------------------------------------------------------------------------------------------------------

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Take dicts with ``text`` and ``choices``."""
        return [self._parse_row(row) for row in (inputs if isinstance(inputs, list | tuple) else [inputs])]

    @staticmethod
    def _parse_row(row: object) -> tuple[str, ...]:
        match row:
            case {"text": str(text), "choices": choices, **rest} if not rest:
                try:
                    return text, write_strings(choices)
                except TypeError as error:
                    raise TypeError(f"choices {error}") from None
        raise TypeError(f"each row must be {{'text': …, 'choices': […]}}, not {row!r:.80}")

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:  # noqa: ARG002
        """Return ``{"choice", "score", "scores"}`` per row."""
        rows = zip(answers["CHOICE"][:, 0].tolist(), map(json.loads, answers["SCORES"][:, 0]), strict=True)
        return [{"choice": choice, "score": scores[choice], "scores": scores} for choice, scores in rows]


TASK = MultipleChoice
