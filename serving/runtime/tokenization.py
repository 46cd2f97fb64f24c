"""Tokenizes many rows at once, exactly as the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from .cutting import CHARACTERS_PER_TOKEN, TextCutter, kept_tokens, room_for, without_overflow
from .types import Arrays, Integers, Text, TooManyRowsError

PADDING = {"input_ids": -1}
"""Values that mark padded positions between the steps of an ensemble. The served graph replaces them (see ``serving.prologue``)."""

FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Attributes of ``tokenizers.Encoding`` by the input names of ``transformers`` models."""

PARTS = 16
"""Length of a text, as multiples of the tokens that are kept of a row, of which the overflow is left out."""
WIDE = 4
"""Product of the lengths of two texts, as multiples of the tokens that the model takes. Of a larger one, each text is truncated by
itself. Of a smaller one, the library makes about 16 overflowing parts at most."""


class TextEncoder:
    """Tokenizes rows for one model.

    Args:
        tokenizer: A tokenizer, or the path of its ``tokenizer.json``. Of its own padding and truncation settings only the
            truncation side is used.
        max_length: Tokens kept of a row, special tokens included. Longer text is truncated, the longer text of a pair first.
        names: Model inputs to make, out of :data:`FIELDS`.
        padding: Padding value by model input name. 0 where absent.
        most_rows: Maximum number of model rows that one request row may become. None: no limit.
        most_characters: Characters of the longest text that is tokenized as a whole (see :class:`TextCutter`). None: no limit.
        cutter: Cuts the texts. None: one with the limits above.
        split_special_tokens: Tokenize the names of special tokens in a text like other words. ``tokenizer.json`` cannot say so.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | str,
        *,
        max_length: int,
        names: Sequence[str],
        padding: dict[str, int],
        most_rows: int | None = None,
        most_characters: int | None = None,
        cutter: TextCutter | None = None,
        split_special_tokens: bool = False,
    ) -> None:
        self._tokenizer = Tokenizer.from_file(tokenizer) if isinstance(tokenizer, str) else tokenizer
        if split_special_tokens:
            self._tokenizer.encode_special_tokens = True
        self._max_length = max_length
        self.most_rows = most_rows
        self._direction = (self._tokenizer.truncation or {}).get("direction", "right")
        self._cutter = cutter or TextCutter(self._tokenizer, most_characters=most_characters)
        self._cut_at_the_end()
        self._tokenizer.no_padding()
        self.names = tuple(names)
        self.padding = dict(padding)
        self._fields = [(name, FIELDS[name], padding.get(name, 0)) for name in names]

    @property
    def max_length(self) -> int:
        """Return the number of tokens kept of a row."""
        return self._max_length

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer itself, for ids of single tokens and for decoding."""
        return self._tokenizer

    def encode(
        self,
        texts: Sequence[Text],
        *,
        truncation: bool = True,
        offsets: bool = False,
        strategy: str = "longest_first",
        max_length: int | None = None,
        special_tokens: bool = True,
    ) -> list[Encoding]:
        """Tokenize every row in one call.

        Args:
            texts: One text, or pair of texts, per row.
            truncation: Truncate rows that are too long. If false, such a row is an error.
            offsets: Record the position of each token in its text, in characters. Costs some time.
            strategy: Which text of a pair is truncated: ``longest_first``, ``only_first`` or ``only_second``.
            max_length: Tokens kept of a row that is truncated, if the model accepts more. None: what the model accepts.
            special_tokens: Add special tokens.

        Raises:
            ValueError: A row is too long and truncation is off, or truncating one text leaves the other too long. Or a text is
                longer than can be tokenized, and cannot be cut. Or ``max_length`` has no room for the special tokens.
        """
        length = self._length(texts, max_length if truncation else None, special_tokens=special_tokens)
        self._tokenizer.no_truncation()
        try:
            texts = self._cutter.cut(texts, max_length=length, strategy=strategy, special_tokens=special_tokens)
            long = {row: text for row, text in enumerate(texts) if _has_much_overflow(text, length)}
            made = {
                row: self._encode_long(text, strategy, length, special_tokens=special_tokens, offsets=offsets)
                for row, text in long.items()
            }
            encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
            self._tokenizer.enable_truncation(length, strategy=strategy, direction=self._direction)
            if not made:
                encodings: list[Encoding] = encode(texts, add_special_tokens=special_tokens)
            else:
                others = iter(
                    encode([text for row, text in enumerate(texts) if row not in made], add_special_tokens=special_tokens)
                )
                encodings = [made[row] if row in made else next(others) for row in range(len(texts))]
        except Exception as error:  # the library raises Exception itself; the text that may be truncated is too short or missing
            if "too short" not in str(error) and "not provided" not in str(error):
                raise
            raise ValueError(f"a row needs more than {length} tokens, even without the text that may be truncated") from None
        finally:
            self._cut_at_the_end()
        if not truncation:
            _require_whole(encodings, length)
        return encodings

    def _length(self, texts: Sequence[Text], max_length: int | None, *, special_tokens: bool) -> int:
        """Return the number of tokens kept of a row.

        Raises:
            ValueError: They have no room for the special tokens. The library would not truncate at all.
        """
        if max_length is None:
            return self._max_length
        length = min(max_length, self._max_length)
        if special_tokens and texts:
            own = self._tokenizer.num_special_tokens_to_add(not all(isinstance(text, str) for text in texts))
            if length < own:
                raise ValueError(f"max_length is {length}, and a row has {own} special tokens")
        return length

    def encode_words(self, rows: Sequence[Sequence[str]], *, truncation: bool = True) -> list[Encoding]:
        """Tokenize rows that are split into words already. The position of a token is the one within its word.

        Args:
            rows: The words of each row.
            truncation: Truncate rows that are too long. If false, such a row is an error.

        Raises:
            ValueError: A row is too long and truncation is off, or the words are more than is tokenized at once.
        """
        self._cutter.require_few((word for words in rows for word in words), 0)
        encodings: list[Encoding] = self._tokenizer.encode_batch(rows, is_pretokenized=True)
        if not truncation:
            _require_whole(encodings, self._max_length)
        return encodings

    def _encode_long(self, text: Text, strategy: str, length: int, *, special_tokens: bool, offsets: bool) -> Encoding:
        """Tokenize a row of which not all overflow is kept: one token of each text that is truncated.

        Raises:
            Exception: As the library does where the text that may be truncated is too short.
        """
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        processor = self._tokenizer.post_processor
        self._tokenizer.no_truncation()
        self._tokenizer.post_processor = None  # the row is processed once, as a whole
        try:
            parts = encode([text] if isinstance(text, str) else [text[0], ("", text[1])])
        finally:
            self._tokenizer.post_processor = processor
            self._tokenizer.enable_truncation(length, strategy=strategy, direction=self._direction)
        room = room_for(self._tokenizer, length, pair=len(parts) == 2, special_tokens=special_tokens)
        if len(parts) == 1:
            one = without_overflow(parts[0], room + 1, direction=self._direction)
            return self._tokenizer.post_process(one, None, special_tokens)
        kept = kept_tokens(len(parts[0]), len(parts[1]), room, strategy)
        one = without_overflow(parts[0], kept[0] + 1, direction=self._direction)
        other = without_overflow(parts[1], kept[1] + 1, direction=self._direction)
        return self._tokenizer.post_process(one, _without_sequence(other), special_tokens)

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts without special tokens and without truncation."""
        self._tokenizer.no_truncation()
        try:
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        finally:
            self._cut_at_the_end()

    def windows(
        self, texts: Sequence[Text], *, stride: int, max_length: int | None = None, strategy: str = "only_second"
    ) -> tuple[list[Encoding], Integers]:
        """Tokenize every row in one call, with offsets. Text that is too long becomes several windows.

        Of a pair, one text is split into windows, and the other text stands in each of them.

        Args:
            texts: One text, or pair of texts, per row.
            stride: Tokens that two neighbouring windows share.
            max_length: Tokens of a window. None: what the model accepts.
            strategy: Which text of a pair is split: ``only_first`` or ``only_second``.

        Returns:
            The windows of all rows, and the sample mapping, INT64 ``[windows]``.

        Raises:
            ValueError: The stride, or the other text of a pair, leaves no room in a window.
            TooManyRowsError: A text becomes more windows than the model accepts.
            TextTooLongError: The texts are more than is tokenized at once.
        """
        pairs = bool(texts) and not isinstance(texts[0], str)
        length = self._max_length if max_length is None else min(max_length, self._max_length)
        if not 0 <= stride < length - self._tokenizer.num_special_tokens_to_add(pairs):  # the library then makes longer ones
            raise ValueError(f"a window of {length} tokens has no room for new text beside {stride} tokens of the one before")
        if self.most_rows is not None and len(texts) > 1:
            harmless = CHARACTERS_PER_TOKEN * self.most_rows * length
            self._cutter.require_few((part for text in texts for part in ((text,) if isinstance(text, str) else text)), harmless)
        for row, text in enumerate(texts):
            self._require_few_windows(row, text, length, stride, strategy)
        self._tokenizer.enable_truncation(
            length,
            stride=stride,
            strategy=strategy if pairs else "longest_first",
            direction=self._direction,
        )
        try:
            encodings = self._tokenizer.encode_batch(texts)
        except BaseException as error:  # the library raises Exception itself; its panics are a BaseException of its own
            if "too short" not in str(error) and "`stride`" not in str(error):
                raise
            raise ValueError(_no_window(length, strategy if pairs else "")) from None
        finally:
            self._cut_at_the_end()
        parts = [[encoding, *encoding.overflowing] for encoding in encodings]
        mapping = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return [window for part in parts for window in part], mapping

    def _require_few_windows(self, row: int, text: Text, length: int, stride: int, strategy: str) -> None:
        """Refuse a text of too many windows before they are made. A client could otherwise ask for millions of them.

        Raises:
            TooManyRowsError: There would be more than :attr:`most_rows`.
            ValueError: The text of a pair that is not split leaves no room, or a text is longer than can be tokenized.
        """
        whole, cut = ("", text) if isinstance(text, str) else text if strategy == "only_second" else text[::-1]
        room = room_for(self._tokenizer, length, pair=not isinstance(text, str))
        advance = room - stride
        most = _most_tokens(cut) if self.most_rows is None else self.most_rows - 1
        if _most_tokens(cut) <= most * (advance - _most_tokens(whole)):
            return
        self._tokenizer.no_truncation()
        try:
            question, _ = self._cutter.count(whole, room, row=row)
            if question >= advance:  # either there is one window, or none: the library would panic, and print that
                most = 0
            elif self.most_rows is None:
                return
            enough = max(0, room - question) + most * (advance - question)
            tokens, exact = self._cutter.count(cut, enough, row=row)
        finally:
            self._cut_at_the_end()
        if tokens <= enough and question <= room:
            return
        if question >= advance:
            raise ValueError(_no_window(length, strategy))
        windows = 1 - (tokens - (room - question)) // (question - advance)
        raise TooManyRowsError(
            f"row {row} makes {windows}{'' if exact else ' or more'} rows for the model, which takes {self.most_rows} at most: "
            "send shorter text"
        )

    def _cut_at_the_end(self) -> None:
        self._tokenizer.enable_truncation(self._max_length, direction=self._direction)

    def arrays(self, encodings: Sequence[Encoding]) -> Arrays:
        """Convert the encodings of one request to model inputs, padded on the right.

        The padding side is always right, whatever the tokenizer says: positions then start at 0 in every row, so a row's answer
        does not depend on its neighbours.

        Returns:
            INT64 ``[rows, longest]`` by model input name.
        """
        if len(encodings) == 1:
            return {name: np.array([getattr(encodings[0], field)], dtype=np.int64) for name, field, _ in self._fields}
        longest = max(map(len, encodings))
        return {name: self._padded(encodings, field, value, longest) for name, field, value in self._fields}

    @staticmethod
    def _padded(encodings: Sequence[Encoding], field: str, value: int, longest: int) -> Integers:
        rows: list[Any] = [getattr(encoding, field) for encoding in encodings]
        padded = np.full((len(rows), longest), value, dtype=np.int64)
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
        return padded


def _has_much_overflow(text: Text, length: int) -> bool:
    """Return whether the library may make many parts of what is not kept of a row, each as long as what is kept.

    It pairs every part of the first text that is too much with every such part of the second: two texts of 64 KB take 16 GB.
    """
    if isinstance(text, str):
        return len(text) > PARTS * length
    return len(text[0]) * len(text[1]) > WIDE * length**2 or max(map(len, text)) > PARTS * length


def _without_sequence(encoding: Encoding) -> Encoding:
    """Return an encoding that does not say of which text it is: processed as the second of a pair, it would replace the first."""
    if len(encoding) == 0:
        return Encoding()
    encoding.pad(len(encoding) + 1)  # it is forgotten where tokens are taken away
    return without_overflow(encoding, len(encoding) - 1, direction="right")


def _require_whole(encodings: Sequence[Encoding], length: int) -> None:
    """Refuse rows that were truncated.

    Raises:
        ValueError: There is one.
    """
    for row, encoding in enumerate(encodings):
        if encoding.overflowing:
            raise ValueError(f"row {row} is longer than the {length} tokens the model takes, and truncation is off")


def _most_tokens(text: str) -> int:
    """Return an upper bound for the tokens of a text: its bytes (at most four per character), and one for its beginning.

    Of ASCII text twice that: some tokenizers mark the beginning of each punctuation mark. The few characters that normalization
    makes long are not considered: what they make too much is refused after it was made.
    """
    return (2 if text.isascii() else 4) * len(text) + 1 if text else 0


def _no_window(length: int, strategy: str) -> str:
    reasons = {"only_second": "the first text leaves the second no room", "only_first": "the second text leaves the first no room"}
    return f"no window of {length} tokens holds this: {reasons.get(strategy, 'the stride leaves no room')} in it"
