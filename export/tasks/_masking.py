"""Masks tokens of plain texts, for training and for evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.tasks.base import IGNORED
from serving.runtime.types import Arrays

if TYPE_CHECKING:
    from tokenizers import Encoding

    from serving.runtime.tokenization import TextEncoder

ATTEMPTS = 6
"""Number of tokens of a text that are tried for a mask. Masking a part of a word can change the tokens of the rest."""
MASKED, UNCHANGED, RANDOM = 0.15, 0.1, 0.1
"""Shares of BERT's masking (Devlin et al. 2019): tokens to predict; of these, those left unchanged and those replaced at random."""


@dataclass(frozen=True)
class Masking:
    """Masks tokens of texts.

    Attributes:
        token: The text of the mask token.
        token_id: Its id.
        specials: Ids of tokens that are never masked.
    """

    token: str
    token_id: int
    specials: frozenset[int]

    def maskable(self, encoding: Encoding) -> list[int]:
        """Return the positions of tokens that can be masked."""
        return [position for position, token in enumerate(encoding.ids) if token not in self.specials]

    def one_each(self, rows: Mapping[int, tuple[str, Encoding]], encoder: TextEncoder) -> dict[int, tuple[str, int]]:
        """Mask one token of each text. The text alone decides which one.

        Args:
            rows: Texts and their encodings, by any key.
            encoder: The tokenizer.

        Returns:
            Text with mask and masked token, by key. Texts in which no token can be masked without changing others are left out.
        """
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
        """Return texts with one token masked, and its position. A space in front may be the token's, so each is tried twice."""
        positions = self.maskable(encoding)
        order = np.random.default_rng(zlib.crc32(text.encode())).permutation(len(positions))[:ATTEMPTS]
        attempts = []
        for position in (positions[index] for index in order.tolist()):
            start, end = encoding.offsets[position]
            before = text[:start]
            for prefix in dict.fromkeys((before, before.rstrip())):
                attempts.append((prefix + self.token + text[end:], position))
        return attempts

    def mask_at_random(self, batch: Arrays, generator: np.random.Generator, *, vocabulary: int) -> Arrays:
        """Mask :data:`MASKED` of the tokens, at least one, of each row that has no target yet.

        Args:
            batch: ``input_ids`` and ``labels``, ``[rows, longest]``.
            generator: Source of randomness.
            vocabulary: Number of tokens.
        """
        ids, labels = batch["input_ids"], batch["labels"]
        maskable = ~np.isin(ids, [*self.specials]) & (labels == IGNORED).all(axis=1, keepdims=True)
        draws = np.where(maskable, generator.random(ids.shape), 1.0)
        chosen = maskable & ((draws < MASKED) | (draws == draws.min(axis=1, keepdims=True)))
        fate = generator.random(ids.shape)
        anything = generator.integers(0, vocabulary, ids.shape, dtype=ids.dtype)
        shown = np.where(fate < RANDOM, anything, np.where(fate < RANDOM + UNCHANGED, ids, self.token_id))
        return {**batch, "input_ids": np.where(chosen, shown, ids), "labels": np.where(chosen, ids, labels)}
