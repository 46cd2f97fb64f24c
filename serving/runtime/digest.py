"""Computes the digest of a request's texts, by which everybody who passes an answer on can tell whose answer it is.

The digest travels from the first step of an ensemble through the model to the last one, and out of the ensemble beside the answer.
Whoever sent the request compares it with the digest of what was sent: an answer to other texts has another digest.

What the first step knows of a row, and the last one tells of its answer, travels in the same number: whether the row was truncated.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np

from .types import Flags, Integers

DIGEST = "DIGEST"
"""INT64 ``[request rows, 1]``, output of the ensemble: the digest of each row that was answered."""
TRUNCATED = "TRUNCATED"
"""BOOL ``[request rows, 1]``, output of the ensemble: whether each row was truncated, so that the model did not read all of it."""
REQUEST_DIGEST = "request_digest"
"""INT64 ``[model rows, 1]``, from the first step to the model: the digest of the request row of each model row, as
:func:`mark_truncated` returns it."""
MODEL_DIGEST = "model_digest"
"""INT64 ``[model rows, 1]``, from the model to the last step: a copy of :data:`REQUEST_DIGEST` that passed through the model."""

_LENGTH = struct.Struct("<I")
_TRUNCATED = 2**52


class ForeignAnswerError(Exception):
    """The model's outputs belong to another request."""

    def __init__(self) -> None:
        """Create the error with the message that a client gets."""
        super().__init__("the answer belongs to another request")


def row_digests(columns: Mapping[str, Sequence[bytes]]) -> Integers:
    """Compute the digest of each row of a request.

    It is the CRC-32 of the row's elements in the order of their tensors' names, each behind its length (UINT32, little-endian),
    plus 2**32 times the number of their bytes modulo 2**20. It is less than 2**52, so that a double holds it exactly.

    Args:
        columns: The elements of each input tensor of the ensemble, by the tensor's name.

    Returns:
        INT64 ``[rows]``.
    """
    ordered = [columns[name] for name in sorted(columns)]
    return np.array([_digest(row) for row in zip(*ordered, strict=True)], dtype=np.int64)


def mark_truncated(digests: Integers, rows: Sequence[int]) -> Integers:
    """Add one more bit, in place, to the digests of rows that were truncated.

    Args:
        digests: INT64 ``[rows]``.
        rows: Positions of those rows.

    Returns:
        ``digests``.
    """
    if len(rows):
        digests[rows] |= _TRUNCATED
    return digests


def split_truncation(marked: Integers) -> tuple[Integers, Flags]:
    """Return the digests, and whether each row was truncated.

    Args:
        marked: What :func:`mark_truncated` returned.
    """
    return marked & (_TRUNCATED - 1), (marked & _TRUNCATED) != 0


def _digest(row: Sequence[bytes]) -> int:
    crc = total = 0
    for element in row:
        length = len(element)
        crc = crc32(element, crc32(_LENGTH.pack(length), crc))
        total += length
    return crc + (total % 2**20 << 32)
