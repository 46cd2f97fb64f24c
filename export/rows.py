"""Evaluation rows, tokenized exactly as Triton will tokenize them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding

from export.data import LabelledRows, model_rows
from export.tasks.exported import ExportedTask
from serving.errors import ExportError
from serving.runtime.tokenization import FIELDS, TextEncoder
from serving.runtime.types import Arrays


class EncodedRows:
    """Labelled rows as the model takes them.

    Args:
        rows: texts, and what predictions are held against.
        task: says how they become rows for the model.
        encoder: the tokenizer as it runs inside Triton.
    """

    def __init__(self, rows: LabelledRows, task: ExportedTask, encoder: TextEncoder) -> None:
        self.references = list(rows.labels)
        self._pair = task.pair
        self._columns = rows.texts
        self._encoder = encoder
        requests = task.requests(rows.texts)
        self._texts = task.texts(requests)
        features = model_rows(rows, task, encoder)
        self.origins = features.origins
        self._encodings: Sequence[Encoding] = features.encodings

    def __len__(self) -> int:
        """How many labelled rows there are; for the model there may be more."""
        return len(self.references)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each of the model's rows."""
        return [len(encoding) for encoding in self._encodings]

    def feed(self, indices: Sequence[int]) -> Arrays:
        """Model inputs ``[rows, longest]`` of those of the model's rows, padded together."""
        return self._encoder.arrays([self._encodings[i] for i in indices])

    def batches(self, size: int) -> list[range]:
        """The model's rows, ``size`` at a time."""
        rows = len(self._encodings)
        return [range(start, min(start + size, rows)) for start in range(0, rows, size)]

    def alone(self) -> list[range]:
        """The model's rows by request row: those that are executed together where nothing else is."""
        ends = np.cumsum(np.bincount(self.origins.sample_mapping)).tolist()
        return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def by_length(self) -> list[int]:
        """Positions of all of the model's rows, longest first."""
        return sorted(range(len(self._encodings)), key=lambda i: -len(self._encodings[i]))

    def require_equal(self, tokenizer: Any, names: Sequence[str], max_length: int) -> None:
        """Check the tokenizer against the checkpoint's own (``transformers``) on the text of every row.

        Raises:
            ExportError: a row's ids, mask or type ids differ; the message shows the row.
        """
        for index, (text, encoding) in enumerate(zip(self._texts, self._encoder.encode(self._texts), strict=True)):
            both = (text,) if isinstance(text, str) else text
            wanted = tokenizer(*both, truncation=True, max_length=max_length, return_token_type_ids=True)
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
        for encoding, owner in zip(self._encodings, self.origins.sample_mapping.tolist(), strict=True):
            if any(encoding.type_ids):
                text = self._columns[0][owner % len(self)]
                raise ExportError(
                    f"the tokenizer gives single texts token_type_ids other than 0, such as row {owner + 1}: {text!r:.200}",
                    hint="the served model reads 0 there, so its answers would differ; such a tokenizer cannot be served",
                )
