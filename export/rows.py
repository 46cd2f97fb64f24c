"""Evaluation rows, tokenized exactly as Triton will tokenize them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from export.data import LabelledRows
from serving.errors import ExportError
from serving.runtime.tasks.base import Arrays, Task
from serving.runtime.tokenization import FIELDS, TextEncoder


class EncodedRows:
    """Labelled rows as model inputs.

    Args:
        rows: texts and label positions.
        task: says how texts become tokenizer rows.
        encoder: the tokenizer as it runs inside Triton.
    """

    def __init__(self, rows: LabelledRows, task: Task, encoder: TextEncoder) -> None:
        self.texts = task.texts(rows.texts)
        self._pair = task.pair
        self.labels: npt.NDArray[np.int64] = np.array(rows.labels, dtype=np.int64)
        self._encoder = encoder
        self._encodings: Sequence[Encoding] = encoder.encode(self.texts)

    def __len__(self) -> int:
        return len(self._encodings)

    def feed(self, indices: Sequence[int]) -> Arrays:
        """Model inputs ``[rows, longest]`` of those rows, padded together."""
        return self._encoder.arrays([self._encodings[i] for i in indices])

    def by_length(self) -> list[int]:
        """Positions of all rows, longest first."""
        return sorted(range(len(self)), key=lambda i: -len(self._encodings[i]))

    def require_equal(self, tokenizer: Any, names: Sequence[str], max_length: int) -> None:
        """Check every row against the checkpoint's own tokenizer (``transformers``, called as in training).

        Raises:
            ExportError: a row's ids, mask or type ids differ; the message shows the row.
        """
        for index, (text, encoding) in enumerate(zip(self.texts, self._encodings, strict=True)):
            pair = (text,) if isinstance(text, str) else text
            wanted = tokenizer(*pair, truncation=True, max_length=max_length, return_token_type_ids=True)
            for name in names:
                if wanted[name] != getattr(encoding, FIELDS[name]):
                    raise ExportError(
                        f"tokenizer.json gives other {name} than the checkpoint's tokenizer for row {index + 1}: {text!r:.200}",
                        hint="the tokenizer's Python code does what tokenizer.json cannot express, so it cannot be served",
                    )

    def require_plain_types(self, names: Sequence[str]) -> None:
        """Check that single texts have no type ids but 0: the served graph derives those itself (see ``serving.prologue``).

        Args:
            names: the model's inputs.

        Raises:
            ExportError: a single text has others, and the model reads them.
        """
        if self._pair or "token_type_ids" not in names:
            return
        for index, (text, encoding) in enumerate(zip(self.texts, self._encodings, strict=True)):
            if any(encoding.type_ids):
                raise ExportError(
                    f"the tokenizer gives single texts token_type_ids other than 0, such as row {index + 1}: {text!r:.200}",
                    hint="the served model reads 0 there, so its answers would differ; such a tokenizer cannot be served",
                )
