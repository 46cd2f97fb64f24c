"""Finds the best tokens for masks in a row's logits, and builds the sequences they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..types import Features, Floats, Integers, Origins

if TYPE_CHECKING:
    from tokenizers import Encoding

BLOCK = 64
"""Tokens of the vocabulary whose largest logit is found first (see :func:`top`)."""

CHUNK = 2**20
"""Maximum number of exponentials in memory at once."""

NUMBERS = np.dtype("<i4")
"""Metadata consists of such numbers: the number of targets, the targets, then the row's token ids."""


@dataclass(frozen=True)
class Mask:
    """Scores and tokens for one mask, best first."""

    scores: list[float]
    tokens: list[int]


@dataclass(frozen=True)
class Row:
    """A row's token ids, the positions of its masks, and the tokens that fill them."""

    ids: list[int]
    positions: list[int]
    masks: list[Mask]

    def sequences(self, pad_token_id: int) -> list[list[int]]:
        """Return the ids with each token of each mask in its place, without padding, as the pipeline does."""
        sequences = []
        for position, mask in zip(self.positions, self.masks, strict=True):
            for token in mask.tokens:
                sequence = self.ids.copy()
                sequence[position] = token
                sequences.append(sequence)
        if pad_token_id in self.ids or any(pad_token_id in mask.tokens for mask in self.masks):
            return [[token for token in sequence if token != pad_token_id] for sequence in sequences]
        return sequences


def with_metadata(encodings: Sequence[Encoding], rows: Sequence[Sequence[int]], targets: list[int]) -> Features:
    """Build rows whose metadata holds the target tokens and the row's own ids."""
    head = [len(targets), *targets]
    metadata = [np.array([*head, *ids], dtype=NUMBERS).tobytes() for ids in rows]
    return Features(encodings, Origins(np.arange(len(encodings)), metadata))


def read_metadata(packed: bytes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Unpack the targets and the token ids of a row."""
    numbers = np.frombuffer(packed, dtype=NUMBERS)
    end = 1 + int(numbers[0])
    return numbers[1:end], numbers[end:]


def best_tokens(logits: Floats, top_k: int, targets: npt.NDArray[np.int32]) -> tuple[Floats, Integers]:
    """Find the best tokens for each mask, only among the targets where there are any.

    Args:
        logits: ``[masks, vocabulary]``.
        top_k: Number of tokens.
        targets: Token ids.

    Returns:
        Scores and tokens, ``[masks, top_k]``, best first.
    """
    if len(targets):
        values = logits[:, targets]
        order = np.argsort(-values, axis=1, kind="stable")[:, :top_k]
        tokens = targets[order].astype(np.int64)
    else:
        tokens = top(logits, top_k)
    values = np.take_along_axis(logits, tokens, axis=1)
    return np.exp(values - log_sum(logits)[:, None]), tokens


def log_sum(logits: Floats) -> Floats:
    """Compute the logarithm of the sum of each row's exponentials: ``[rows]``."""
    found = np.empty(len(logits), dtype=np.float32)
    step = max(1, CHUNK // max(1, logits.shape[1]))
    for start in range(0, len(logits), step):
        rows = logits[start : start + step]
        largest = rows.max(axis=1, keepdims=True)
        found[start : start + step] = largest[:, 0] + np.log(np.exp(rows - largest).sum(axis=1))
    return found


def top(logits: Floats, top_k: int) -> Integers:
    """Find the positions of the ``top_k`` largest values of each row, largest first: ``[rows, top_k]``.

    The largest values lie in the ``top_k`` blocks with the largest maxima, and those are found at the speed of memory. Sorting or
    partitioning a whole vocabulary takes many times as long as the rest of the step.
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
