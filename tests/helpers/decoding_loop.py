"""Generation of one request without an engine: every step computes the whole sequences again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from serving.runtime.generation.decoding import Decoding
from serving.runtime.types import Floats, Integers


def decode(decoding: Decoding, prompt: Sequence[int], logits_of: Callable[[Integers], Floats]) -> list[list[int]]:
    """Return the generated tokens of each answer.

    Args:
        decoding: What chooses the tokens.
        prompt: What is read first.
        logits_of: From INT64 ``[rows, length]`` to the logits of the next token, FP32 ``[rows, vocab]``.
    """
    rows = np.array([prompt], dtype=np.int64)
    while True:
        logits = np.ascontiguousarray(logits_of(rows), dtype=np.float32)
        continuation = decoding.advance(logits, logits.argmax(axis=1) if decoding.takes_argmax else None)
        if continuation is None:
            return [list(sequence.token_ids) for sequence in decoding.sequences()]
        if continuation.sources is not None:
            rows = rows[continuation.sources]
        rows = np.concatenate([rows, continuation.tokens[:, None]], axis=1)
