"""Text → token ids, exactly as in training, for many rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from .tasks.base import Arrays, Text

PADDING = {"input_ids": -1}
"""Values that mark padded positions between the steps of an ensemble; the served graph replaces them (see ``serving.prologue``)."""

FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""What the tokenizers library calls the tensors that ``transformers`` models take."""


class TextEncoder:
    """A ``tokenizer.json`` set up for one model.

    Args:
        path: the ``tokenizer.json``; its own padding and truncation settings are ignored.
        max_length: tokens kept of a row, special tokens included; longer text is cut, the longer of a pair first.
        names: model inputs wanted, out of :data:`FIELDS`.
        padding: value by model input name for rows shorter than their neighbours; 0 where absent.
    """

    def __init__(self, path: str, *, max_length: int, names: Sequence[str], padding: dict[str, int]) -> None:
        self._tokenizer = Tokenizer.from_file(path)
        truncation = self._tokenizer.truncation or {}
        self._tokenizer.enable_truncation(max_length, direction=truncation.get("direction", "right"))
        self._tokenizer.no_padding()
        self._fields = [(name, FIELDS[name], padding.get(name, 0)) for name in names]

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """Tokenize every row in one call."""
        encodings: list[Encoding] = self._tokenizer.encode_batch_fast(texts)
        return encodings

    def arrays(self, encodings: Sequence[Encoding]) -> Arrays:
        """Encodings of one request → INT64 ``[rows, longest]`` by model input name, short rows padded on the right.

        Right, whatever the tokenizer says: positions then start at 0 in every row, so a row's answer does not depend on its
        neighbours.
        """
        if len(encodings) == 1:
            return {name: np.array([getattr(encodings[0], field)], dtype=np.int64) for name, field, _ in self._fields}
        longest = max(map(len, encodings))
        return {name: self._padded(encodings, field, value, longest) for name, field, value in self._fields}

    @staticmethod
    def _padded(encodings: Sequence[Encoding], field: str, value: int, longest: int) -> npt.NDArray[np.int64]:
        rows: list[Any] = [getattr(encoding, field) for encoding in encodings]
        padded = np.full((len(rows), longest), value, dtype=np.int64)
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
        return padded
