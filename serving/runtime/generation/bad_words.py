"""Sequences of tokens that are never generated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import Floats, Integers
from .decoding import FORBIDDEN


class NoBadWords:
    """Forbids sequences of tokens."""

    def __init__(self, words: Sequence[tuple[int, ...]]) -> None:
        self._tokens = np.array([word[0] for word in words if len(word) == 1], dtype=np.int64)
        of_length: dict[int, list[tuple[int, ...]]] = {}
        for word in words:
            if len(word) > 1:
                of_length.setdefault(len(word), []).append(word)
        arrays = [np.array(group, dtype=np.int64) for group in of_length.values()]
        self._longer = [(array[:, :-1], array[:, -1]) for array in arrays]

    def __call__(self, sequences: Integers, scores: Floats) -> None:
        """Forbid the last token of each sequence whose other tokens were read last."""
        scores[:, self._tokens] = FORBIDDEN
        for prefixes, last in self._longer:
            length = prefixes.shape[1]
            if length < sequences.shape[1]:
                rows, words = (sequences[:, None, -length:] == prefixes).all(axis=2).nonzero()
                scores[rows, last[words]] = FORBIDDEN
