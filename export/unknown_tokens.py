"""Count the tokens of the training rows that the checkpoint's vocabulary does not have."""

from __future__ import annotations

from typing import Any

from export.data import LabelledRows, sample_indices
from export.lengths import SAMPLED_ROWS, untruncated_tokenizer
from export.tasks.base import Task
from serving.manifests import UnknownTokens
from serving.reporting import logger

MAX_TOKEN_SHARE, MAX_ROW_SHARE = 0.01, 0.1
"""Shares of the tokens and of the rows above which there is a warning."""
SHOWN_TOKENS = 12


def count_unknown_tokens(rows: LabelledRows, task: Task, tokenizer: Any, *, seed: int) -> UnknownTokens | None:
    """Count the unknown tokens of a sample of rows, without truncation and without special tokens.

    Args:
        rows: The rows.
        task: The task, which makes the model's texts of them.
        tokenizer: The checkpoint's fast tokenizer.
        seed: Seed of the sample.

    Returns:
        The shares; None if the tokenizer has no unknown token, because it can write any text.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return None
    texts = task.texts(rows.take(sample_indices(len(rows), SAMPLED_ROWS, seed)).texts)
    counts = []
    example: list[str] = []
    for encoding in untruncated_tokenizer(tokenizer.backend_tokenizer).encode_batch(list(texts), add_special_tokens=False):
        counts.append((encoding.ids.count(unknown), len(encoding)))
        if counts[-1][0] and not example:
            first = max(0, encoding.ids.index(unknown) - SHOWN_TOKENS // 2)
            example = encoding.tokens[first : first + SHOWN_TOKENS]
    tokens = sum(total for _, total in counts)
    return UnknownTokens(
        rows=sum(count > 0 for count, _ in counts) / max(len(counts), 1),
        tokens=sum(count for count, _ in counts) / max(tokens, 1),
        token=str(tokenizer.unk_token),
        example=" ".join(example),
    )


def warn_of_unknown_tokens(found: UnknownTokens | None) -> None:
    """Warn if the vocabulary does not cover the rows, because the model cannot tell unknown words apart."""
    if found is None or (found.tokens <= MAX_TOKEN_SHARE and found.rows <= MAX_ROW_SHARE):
        return
    logger.warning(
        f"{found.rows:.0%} of the training rows have unknown tokens ({found.token}), {found.tokens:.0%} of all tokens, such as: "
        f"{found.example}. The checkpoint's vocabulary does not cover these texts, so the model cannot tell their words apart: "
        "choose a checkpoint for their language, or a multilingual one"
    )
