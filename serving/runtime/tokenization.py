"""Text → token ids, exactly as in training, for many rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from .tasks.base import Arrays, Text, TooManyRowsError

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
        most_rows: rows for the model that one row of a request may become; None: any number.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | str,
        *,
        max_length: int,
        names: Sequence[str],
        padding: dict[str, int],
        most_rows: int | None = None,
    ) -> None:
        self._tokenizer = Tokenizer.from_file(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self._max_length = max_length
        self.most_rows = most_rows
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

    def encode(
        self, texts: Sequence[Text], *, truncation: bool = True, offsets: bool = False, strategy: str = "longest_first"
    ) -> list[Encoding]:
        """Tokenize every row in one call.

        Args:
            truncation: cut what is too long; otherwise it is refused.
            offsets: the encodings know where in its text each token stands (in characters), which costs some time.
            strategy: which of a pair is cut: ``longest_first``, ``only_first`` or ``only_second``.

        Raises:
            ValueError: a row is too long, and not to be cut; or cutting the one leaves the other too long.
        """
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        self._tokenizer.enable_truncation(self._max_length, strategy=strategy, direction=self._direction)
        try:
            encodings: list[Encoding] = encode(texts)
        except Exception as error:  # the library raises no other; "too short" is what is left of the text that may be cut
            if "too short" not in str(error):
                raise
            raise ValueError(
                f"a row needs more than the {self._max_length} tokens the model takes, even without the text that may be cut"
            ) from None
        finally:
            self._cut_at_the_end()
        if not truncation:
            for row, encoding in enumerate(encodings):
                if encoding.overflowing:
                    raise ValueError(
                        f"row {row} is longer than the {self._max_length} tokens the model takes, and truncation is off"
                    )
        return encodings

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts alone: none around them, and nothing cut."""
        self._tokenizer.no_truncation()
        found = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        self._cut_at_the_end()
        return found

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
            TooManyRowsError: a text becomes more windows than the model takes.
        """
        pairs = bool(texts) and not isinstance(texts[0], str)
        length = self._max_length if max_length is None else min(max_length, self._max_length)
        if not 0 <= stride < length - self._tokenizer.num_special_tokens_to_add(pairs):  # the library then makes longer ones
            raise ValueError(f"a window of {length} tokens has no room for new text beside {stride} tokens of the one before")
        for row, text in enumerate(texts):
            self._require_few_windows(row, text, length, stride)
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

    def _require_few_windows(self, row: int, text: Text, length: int, stride: int) -> None:
        """Refuse a text of too many windows before they are made: of such that hardly advance, a client could ask for millions.

        Raises:
            TooManyRowsError: there would be more than :attr:`most_rows`.
        """
        if self.most_rows is None:
            return
        first, cut = ("", text) if isinstance(text, str) else text
        room = length - self._tokenizer.num_special_tokens_to_add(not isinstance(text, str))
        advance = room - stride
        if _most_tokens(cut) <= (self.most_rows - 1) * (advance - _most_tokens(first)):
            return
        self._tokenizer.no_truncation()
        question, tokens = (len(self._tokenizer.encode(part, add_special_tokens=False)) for part in (first, cut))
        self._cut_at_the_end()
        if advance > question and tokens - (room - question) > (self.most_rows - 1) * (advance - question):
            windows = 1 - (tokens - (room - question)) // (question - advance)
            raise TooManyRowsError(
                f"row {row} makes {windows} rows for the model, which takes {self.most_rows} at most: send shorter text"
            )

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


def _most_tokens(text: str) -> int:
    """No tokenizer makes more of a text than it has bytes, and at most four of a character; and one perhaps of where it begins."""
    return (len(text) if text.isascii() else 4 * len(text)) + 1 if text else 0
