"""Tokenize evaluation rows exactly as the served preprocessing does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding

from export.data import LabelledRows, tokenize_rows
from export.tasks._encoder import ExportedEncoderTask
from serving.errors import ExportError
from serving.runtime.tokenization import FIELDS, TextEncoder
from serving.runtime.types import Arrays


class EncodedRows:
    """Labelled rows as model inputs. One labelled row can become several rows of the model.

    Attributes:
        references: The reference answers, one per labelled row.
        origins: The request row that each of the model's rows belongs to.
    """

    def __init__(self, rows: LabelledRows, task: ExportedEncoderTask, encoder: TextEncoder) -> None:
        """Tokenize the rows.

        Args:
            rows: The rows.
            task: The task, which makes the model's rows of them.
            encoder: The tokenizer as it runs inside Triton.
        """
        self.references = list(rows.labels)
        self._pair = task.pair
        self._columns = rows.texts
        self._encoder = encoder
        requests = task.requests(rows.texts)
        self._texts = task.texts(requests)
        features = tokenize_rows(rows, task, encoder)
        self.origins = features.origins
        self._encodings: Sequence[Encoding] = features.encodings

    def __len__(self) -> int:
        """Return the number of labelled rows."""
        return len(self.references)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each of the model's rows."""
        return [len(encoding) for encoding in self._encodings]

    def feed(self, indices: Sequence[int]) -> Arrays:
        """Return the model inputs of some of the model's rows, INT64 ``[rows, longest]``, padded to the longest of them."""
        return self._encoder.arrays([self._encodings[i] for i in indices])

    def batches(self, size: int) -> list[range]:
        """Divide the model's rows into batches of ``size`` consecutive rows."""
        rows = len(self._encodings)
        return [range(start, min(start + size, rows)) for start in range(0, rows, size)]

    def request_batches(self) -> list[range]:
        """Group the model's rows by request row, as the server executes them without batching."""
        ends = np.cumsum(np.bincount(self.origins.sample_mapping)).tolist()
        return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def by_length(self) -> list[int]:
        """Return the indices of the model's rows, longest row first."""
        return sorted(range(len(self._encodings)), key=lambda i: -len(self._encodings[i]))

    def require_equal(self, tokenizer: Any, names: Sequence[str], max_length: int) -> None:
        """Check that the served tokenizer and the checkpoint's tokenizer agree on every row.

        Args:
            tokenizer: The checkpoint's tokenizer (``transformers``).
            names: Names of the model's inputs.
            max_length: Maximum tokens of a row.

        Raises:
            ExportError: Ids, mask or type ids of a row differ. The message shows the row.
        """
        for index, (text, encoding) in enumerate(zip(self._texts, self._encoder.encode(self._texts), strict=True)):
            both = (text,) if isinstance(text, str) else text
            expected = tokenizer(
                *both, truncation=True, max_length=max_length, return_token_type_ids=True, return_attention_mask=True
            )
            for name in names:
                if expected[name] != getattr(encoding, FIELDS[name]):
                    raise ExportError(
                        f"tokenizer.json and the checkpoint's tokenizer give different {name} for row {index + 1}: {text!r:.200}",
                        hint="the tokenizer has Python code that tokenizer.json cannot express, so it cannot be served",
                    )

    def require_plain_types(self, names: Sequence[str]) -> None:
        """Check that all type ids of single texts are 0, because the served graph sets them to 0 (see ``serving.prologue``).

        Args:
            names: Names of the model's inputs.

        Raises:
            ExportError: A single text has other type ids, and the model reads them.
        """
        if self._pair or "token_type_ids" not in names:
            return
        for encoding, request_row in zip(self._encodings, self.origins.sample_mapping.tolist(), strict=True):
            if any(encoding.type_ids):
                text = self._columns[0][request_row % len(self)]
                raise ExportError(
                    f"the tokenizer gives single texts token_type_ids other than 0, such as row {request_row + 1}: {text!r:.200}",
                    hint="the served graph sets them to 0, so its answers would differ; such a tokenizer cannot be served",
                )
