"""What fills masks: the best tokens of a row's logits, and the sequences they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .base import Features, Origins

if TYPE_CHECKING:
    from tokenizers import Encoding

BLOCK = 64
"""Tokens of the vocabulary whose largest logit is found first (see :func:`top`)."""

CHUNK = 2**20
"""Numbers whose exponentials are held at once."""

NUMBERS = np.dtype("<i4")
"""Notes are such numbers: how many targets there are, the targets, then the row's token ids."""


@dataclass(frozen=True)
class Mask:
    """Scores and tokens, best first."""

    scores: list[float]
    tokens: list[int]


@dataclass(frozen=True)
class Row:
    """A row's token ids, where its masks stand, and what fills them."""

    ids: list[int]
    positions: list[int]
    masks: list[Mask]

    def sequences(self, pad_token_id: int) -> list[list[int]]:
        """The ids with each token of each mask in its place; without padding, as the pipeline has it."""
        sequences = []
        for position, mask in zip(self.positions, self.masks, strict=True):
            for token in mask.tokens:
                sequence = self.ids.copy()
                sequence[position] = token
                sequences.append(sequence)
        if pad_token_id in self.ids or any(pad_token_id in mask.tokens for mask in self.masks):
            return [[token for token in sequence if token != pad_token_id] for sequence in sequences]
        return sequences


def with_notes(encodings: Sequence[Encoding], rows: Sequence[Sequence[int]], targets: list[int]) -> Features:
    """Rows that carry the tokens to choose from and their own ids."""
    head = [len(targets), *targets]
    notes = [np.array([*head, *ids], dtype=NUMBERS).tobytes() for ids in rows]
    return Features(encodings, Origins(np.arange(len(encodings)), notes))


def read_note(note: bytes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Targets and token ids."""
    numbers = np.frombuffer(note, dtype=NUMBERS)
    end = 1 + int(numbers[0])
    return numbers[1:end], numbers[end:]


def best_tokens(
    logits: npt.NDArray[np.float32], top_k: int, targets: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """``[masks, vocabulary]`` → scores and tokens ``[masks, top_k]``, best first; of the targets only, where there are any."""
    if len(targets):
        values = logits[:, targets]
        order = np.argsort(-values, axis=1, kind="stable")[:, :top_k]
        tokens = targets[order].astype(np.int64)
    else:
        tokens = top(logits, top_k)
    values = np.take_along_axis(logits, tokens, axis=1)
    return np.exp(values - log_sum(logits)[:, None]), tokens


def log_sum(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logarithm of the sum of each row's exponentials: ``[rows]``."""
    found = np.empty(len(logits), dtype=np.float32)
    step = max(1, CHUNK // max(1, logits.shape[1]))
    for start in range(0, len(logits), step):
        rows = logits[start : start + step]
        largest = rows.max(axis=1, keepdims=True)
        found[start : start + step] = largest[:, 0] + np.log(np.exp(rows - largest).sum(axis=1))
    return found


def top(logits: npt.NDArray[np.float32], top_k: int) -> npt.NDArray[np.int64]:
    """Positions of the ``top_k`` largest of each row, largest first: ``[rows, top_k]``.

    The largest lie in the ``top_k`` blocks that have the largest maxima, and those are found at the speed of memory; sorting or
    partitioning a whole vocabulary takes many times as long as all else that is done with it.
    """
    rows, size = logits.shape
    columns = size // BLOCK
    if top_k == 0 or top_k * 4 > columns:
        return np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    whole = columns * BLOCK
    largest = logits[:, :whole].reshape(rows, BLOCK, columns).max(axis=1)
    blocks = np.argpartition(largest, columns - top_k, axis=1)[:, -top_k:]
    inside = (blocks[:, :, None] + columns * np.arange(BLOCK)).reshape(rows, -1)
    behind = np.broadcast_to(np.arange(whole, size), (rows, size - whole))
    candidates = np.sort(np.concatenate([inside, behind], axis=1), axis=1)
    order = np.argsort(-np.take_along_axis(logits, candidates, axis=1), axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(candidates, order, axis=1)


_CLEAN_UP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)
"""What ``transformers`` replaces, in its order."""


def cleaned_up(text: str) -> str:
    """Decoded text without the spaces in front of punctuation."""
    for old, new in _CLEAN_UP:
        text = text.replace(old, new)
    return text
