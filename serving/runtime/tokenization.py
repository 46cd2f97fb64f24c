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
    """A tokenizer set up for one model.

    Args:
        tokenizer: or the ``tokenizer.json`` it is in; its own padding and truncation settings are ignored, but for the side that
            is cut.
        max_length: tokens kept of a row, special tokens included; longer text is cut, the longer of a pair first.
        names: model inputs wanted, out of :data:`FIELDS`.
        padding: value by model input name for rows shorter than their neighbours; 0 where absent.
    """

    def __init__(self, tokenizer: Tokenizer | str, *, max_length: int, names: Sequence[str], padding: dict[str, int]) -> None:
        self._tokenizer = Tokenizer.from_file(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self._max_length = max_length
        self._direction = (self._tokenizer.truncation or {}).get("direction", "right")
        self._cut_at_the_end()
        self._tokenizer.no_padding()
        self._fields = [(name, FIELDS[name], padding.get(name, 0)) for name in names]

    @property
    def max_length(self) -> int:
        """Tokens kept of a row."""
        return self._max_length

    @property
    def tokenizer(self) -> Tokenizer:
        """For what is neither here nor there: ids of single tokens, decoding."""
        return self._tokenizer

    def encode(self, texts: Sequence[Text], *, truncation: bool = True, offsets: bool = False) -> list[Encoding]:
        """Tokenize every row in one call.

        Args:
            truncation: cut what is too long; otherwise it is refused.
            offsets: the encodings know where in its text each token stands (in characters), which costs some time.

        Raises:
            ValueError: a row is too long, and not to be cut.
        """
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        encodings: list[Encoding] = encode(texts)
        if not truncation:
            for row, encoding in enumerate(encodings):
                if encoding.overflowing:
                    raise ValueError(
                        f"row {row} is longer than the {self._max_length} tokens the model takes, and truncation is off"
                    )
        return encodings

    def windows(
        self, texts: Sequence[Text], *, stride: int, max_length: int | None = None
    ) -> tuple[list[Encoding], npt.NDArray[np.int64]]:
        """Tokenize every row in one call, with offsets; text that is too long becomes several windows (of a pair, the second text
        does, and the first stands in each of them).

        Args:
            stride: tokens that a window has in common with the one before.
            max_length: tokens of a window; None: what the model takes.

        Returns:
            The windows of all rows, and which row each is of.

        Raises:
            ValueError: the stride, or the first text of a pair, leaves a window no room.
        """
        pairs = bool(texts) and not isinstance(texts[0], str)
        length = self._max_length if max_length is None else min(max_length, self._max_length)
        if not 0 <= stride < length - self._tokenizer.num_special_tokens_to_add(pairs):  # the library then makes longer ones
            raise ValueError(f"a window of {length} tokens has no room for new text beside {stride} tokens of the one before")
        self._tokenizer.enable_truncation(
            length,
            stride=stride,
            strategy="only_second" if pairs else "longest_first",
            direction=self._direction,
        )
        try:
            encodings = self._tokenizer.encode_batch(texts)
        except BaseException as error:  # the library raises Exception itself, and panics with a BaseException of its own
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            reason = "the first text leaves the second no room in it" if pairs else error
            raise ValueError(f"no window of {length} tokens holds this: {reason}") from None
        finally:
            self._cut_at_the_end()
        parts = [[encoding, *encoding.overflowing] for encoding in encodings]
        owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return [window for part in parts for window in part], owners

    def _cut_at_the_end(self) -> None:
        self._tokenizer.enable_truncation(self._max_length, direction=self._direction)

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
