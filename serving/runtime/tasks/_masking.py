"""Plain text → text with masks, to learn from and to be judged on."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._labels import IGNORED
from .base import Arrays

if TYPE_CHECKING:
    from tokenizers import Encoding

    from ..tokenization import TextEncoder

ATTEMPTS = 6
"""Tokens of a text that are tried for a mask: where only a part of a word was masked, the rest may become other tokens."""
MASKED, KEPT, RANDOM = 0.15, 0.1, 0.1
"""BERT's recipe: of all tokens this share is to be predicted, and of those, shares stay as they are or become any token."""


@dataclass(frozen=True)
class Masking:
    """Args:
    token: the mask as it stands in texts.
    token_id: as the model takes it.
    specials: ids of tokens that are never masked.
    """

    token: str
    token_id: int
    specials: frozenset[int]

    def maskable(self, encoding: Encoding) -> list[int]:
        """Positions of the tokens that are text."""
        return [position for position, token in enumerate(encoding.ids) if token not in self.specials]

    def one_each(self, rows: Mapping[int, tuple[str, Encoding]], encoder: TextEncoder) -> dict[int, tuple[str, int]]:
        """Plain texts, by any key → each with one of its tokens masked, and that token; which, only the text decides. Those in
        which no token can be masked without changing others are left out."""
        attempts = {key: self._attempts(text, encoding) for key, (text, encoding) in rows.items()}
        found: dict[int, tuple[str, int]] = {}
        for turn in range(2 * ATTEMPTS):
            trying = {key: tries[turn] for key, tries in attempts.items() if key not in found and turn < len(tries)}
            encodings = encoder.encode([text for text, _ in trying.values()])
            for (key, (text, position)), encoding in zip(trying.items(), encodings, strict=True):
                wanted = list(rows[key][1].ids)
                token, wanted[position] = wanted[position], self.token_id
                if encoding.ids == wanted:
                    found[key] = text, token
        return found

    def _attempts(self, text: str, encoding: Encoding) -> list[tuple[str, int]]:
        """Texts in which one token is masked, and its position; a space in front may be the token's, so each is tried twice."""
        positions = self.maskable(encoding)
        order = np.random.default_rng(zlib.crc32(text.encode())).permutation(len(positions))[:ATTEMPTS]
        attempts = []
        for position in (positions[index] for index in order.tolist()):
            start, end = encoding.offsets[position]
            before = text[:start]
            for kept in dict.fromkeys((before, before.rstrip())):
                attempts.append((kept + self.token + text[end:], position))
        return attempts

    def drawn(self, batch: Arrays, generator: np.random.Generator, *, vocabulary: int) -> Arrays:
        """Masks :data:`MASKED` of the tokens, one at least, of each row that has no target yet.

        Args:
            batch: ``input_ids`` and ``labels``, ``[rows, longest]``.
            vocabulary: how many tokens there are.
        """
        ids, labels = batch["input_ids"], batch["labels"]
        maskable = ~np.isin(ids, [*self.specials]) & (labels == IGNORED).all(axis=1, keepdims=True)
        draws = np.where(maskable, generator.random(ids.shape), 1.0)
        chosen = maskable & ((draws < MASKED) | (draws == draws.min(axis=1, keepdims=True)))
        fate = generator.random(ids.shape)
        anything = generator.integers(0, vocabulary, ids.shape, dtype=ids.dtype)
        shown = np.where(fate < RANDOM, anything, np.where(fate < RANDOM + KEPT, ids, self.token_id))
        return {**batch, "input_ids": np.where(chosen, shown, ids), "labels": np.where(chosen, ids, labels)}
