"""Choose the maximum length of a row from the token counts of the training rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from export.data import LabelledRows, sample_indices
from export.tasks.base import Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLED_ROWS = 10_000
"""Maximum number of rows whose tokens are counted, drawn at random."""
UNTRUNCATED_SHARE = 0.99
"""Minimum share of the rows that are not truncated."""
MAX_AUTOMATIC_LENGTH = 1024
"""Maximum length in tokens that is chosen automatically, because the cost of attention grows with the square of the length."""
LENGTH_MULTIPLE = 8
"""Lengths are multiples of this, which suits the matrix units of GPUs."""


def count_tokens(rows: LabelledRows, task: Task, tokenizer: Any, *, seed: int) -> list[int]:
    """Count the tokens of a sample of rows, without truncation and with special tokens.

    Args:
        rows: The rows.
        task: The task, which makes the model's texts of them.
        tokenizer: The checkpoint's fast tokenizer.
        seed: Seed of the sample.

    Returns:
        Token counts in ascending order.
    """
    return _counts(task.texts(rows.take(sample_indices(len(rows), SAMPLED_ROWS, seed)).texts), tokenizer.backend_tokenizer)


def count_target_tokens(rows: LabelledRows, tokenizer: Any, *, seed: int) -> list[int]:
    """Count the tokens of the target texts of a sample of rows, as :func:`count_tokens` does.

    Args:
        rows: Rows whose labels are lists of target texts; the first of each list is counted.
        tokenizer: The checkpoint's fast tokenizer.
        seed: Seed of the sample.

    Returns:
        Token counts in ascending order.
    """
    targets = [first for first, *_ in rows.take(sample_indices(len(rows), SAMPLED_ROWS, seed)).labels]
    return _counts(targets, target_tokenizer(tokenizer) or tokenizer.backend_tokenizer)


def target_tokenizer(tokenizer: Any) -> Tokenizer | None:
    """Return what tokenizes targets, if that is not the tokenizer of texts.

    Args:
        tokenizer: The checkpoint's fast tokenizer.
    """
    found: Tokenizer | None = getattr(tokenizer, "target_tokenizer", None)
    return found


def untruncated_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer as one that neither truncates nor pads."""
    from tokenizers import Tokenizer

    untruncated = Tokenizer.from_str(tokenizer.to_str())
    untruncated.no_truncation()
    untruncated.no_padding()
    return untruncated


def _counts(texts: Any, tokenizer: Tokenizer) -> list[int]:
    return sorted(len(encoding) for encoding in untruncated_tokenizer(tokenizer).encode_batch_fast(list(texts)))


def fitted_length(counts: list[int], *, minimum: int) -> int:
    """Choose a maximum length that truncates at most 1 % of the rows.

    Args:
        counts: Tokens of each row.
        minimum: Minimum length.

    Returns:
        A length between ``minimum`` and :data:`MAX_AUTOMATIC_LENGTH`.
    """
    quantile = np.quantile(counts, UNTRUNCATED_SHARE, method="inverted_cdf")
    rounded_up = int(-(-quantile // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
    return max(minimum, min(MAX_AUTOMATIC_LENGTH, rounded_up))
