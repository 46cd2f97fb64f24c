"""How long rows are → where they are cut."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.data import LabelledRows, sample
from export.tasks.base import Task

COUNTED = 10_000
"""Rows that are counted at most, drawn at random."""
WHOLE = 0.99
"""Share of the rows that shall stay whole."""
MOST = 1024
"""Tokens that a row is never given unasked, however long rows are: what they cost grows with the square."""
STEP = 8
"""Lengths are multiples of this, as matrix units like them."""


def tokens(rows: LabelledRows, task: Task, tokenizer: Any, *, seed: int) -> list[int]:
    """Tokens of rows, uncut, special ones among them, in rising order."""
    return _lengths(task.texts(rows.take(sample(len(rows), COUNTED, seed)).texts), tokenizer)


def target_tokens(rows: LabelledRows, tokenizer: Any, *, seed: int) -> list[int]:
    """As :func:`tokens`, of the texts that are learnt to be written."""
    return _lengths([first for first, *_ in rows.take(sample(len(rows), COUNTED, seed)).labels], tokenizer)


def _lengths(texts: Any, tokenizer: Any) -> list[int]:
    from tokenizers import Tokenizer

    uncut = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    uncut.no_truncation()
    uncut.no_padding()
    return sorted(len(encoding) for encoding in uncut.encode_batch_fast(list(texts)))


def usual_length(lengths: list[int], *, least: int) -> int:
    """Where to cut so that all but 1 % of the rows stay whole, never below ``least``, nor above :data:`MOST`."""
    return max(least, min(MOST, int(-(-np.quantile(lengths, WHOLE, method="inverted_cdf") // STEP) * STEP)))
