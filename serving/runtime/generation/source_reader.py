"""From the texts of a request to what the encoder reads, as the pipeline of ``transformers`` makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..row_preparation import MOST_CHARACTERS
from ..tasks._text2text import Text2TextTask
from ..tokenization import TextEncoder
from ..types import Flags, Integers


@dataclass(frozen=True)
class Sources:
    """What the encoder reads of the rows of a request.

    Attributes:
        tokens: INT64 ``[length]`` of each row.
        truncated: BOOL ``[rows]``, whether a row was truncated.
    """

    tokens: Sequence[Integers]
    truncated: Flags


class SourceReader:
    """Tokenizes the texts of one model.

    Args:
        folder: Version folder of the model, with its tokenizer.
        max_length: Most tokens that the encoder reads.
        split_special_tokens: Tokenize the names of special tokens in a text like other words.
    """

    def __init__(self, folder: Path, *, max_length: int, split_special_tokens: bool) -> None:
        self._encoder = TextEncoder(
            str(folder / "tokenizer.json"),
            max_length=max_length,
            names=("input_ids",),
            padding={},
            most_characters=MOST_CHARACTERS,
            split_special_tokens=split_special_tokens,
        )
        self.tokenizer = self._encoder.tokenizer

    def read(self, texts: Sequence[str], task: Text2TextTask) -> Sources:
        """Tokenize the texts of a request.

        Args:
            texts: One text per row.
            task: The task with the options of the request.

        Raises:
            ValueError: A text has no tokens, or more than the encoder reads and may not be truncated.
        """
        encodings = self._encoder.encode([task.prefix + text for text in texts], truncation=task.truncation)
        tokens = []
        for row, encoding in enumerate(encodings):
            if not len(encoding):
                raise ValueError(f"row {row} has no tokens, so the model cannot answer it: send some text")
            marks = np.array(encoding.special_tokens_mask, dtype=np.bool_)
            tokens.append(task.source_tokens(np.array(encoding.ids, dtype=np.int64), marks))
        return Sources(tokens, np.array([bool(encoding.overflowing) for encoding in encodings], dtype=np.bool_))

    def first_token(self, text: str) -> int:
        """Return the first token of a text alone.

        Raises:
            ValueError: It has none.
        """
        found = self.tokenizer.encode(text, add_special_tokens=False).ids
        if not found:
            raise ValueError(f"option stop_sequence {text!r:.80} has no tokens")
        return int(found[0])
