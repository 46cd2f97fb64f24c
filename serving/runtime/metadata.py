"""Packs and unpacks the tensor that travels around the model, from the first step of an ensemble to the last one.

It holds one entry per model row: the position of its request row, and the task's metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .types import Integers, Origins

METADATA = "METADATA"
"""BYTES ``[model rows, 1]``: the position of the row's request row in its request (INT32), then the task's metadata."""

_POSITION = struct.Struct("<i")


def pack(sample_mapping: Integers, metadata: Sequence[bytes]) -> npt.NDArray[np.object_]:
    """Build the tensor of one request.

    Args:
        sample_mapping: INT64 ``[model rows]``, starting at 0.
        metadata: One entry per model row.

    Returns:
        BYTES ``[model rows, 1]``.
    """
    packed = np.empty((len(sample_mapping), 1), dtype=np.object_)
    packed[:, 0] = [_POSITION.pack(row) + entry for row, entry in zip(sample_mapping.tolist(), metadata, strict=True)]
    return packed


def unpack(tensors: Sequence[npt.NDArray[Any]]) -> tuple[Origins, list[int]]:
    """Read the tensors of several requests, one after the other.

    Args:
        tensors: As :func:`pack` made them, one per request.

    Returns:
        The origins of all model rows, and the number of rows of each request.

    Raises:
        ValueError: A tensor was not made by :func:`pack`. Clients can send tensors to the last step directly.
    """
    mapping: list[int] = []
    metadata: list[bytes] = []
    counts: list[int] = []
    for tensor in tensors:
        packed = tensor[:, 0].tolist()
        before = sum(counts)
        own = [_POSITION.unpack_from(entry)[0] for entry in packed]
        if not own or own[0] != 0 or any(two - one not in (0, 1) for one, two in pairwise(own)):
            raise ValueError("the sample mapping does not start at 0 or has a gap")
        mapping += [before + row for row in own]
        metadata += [entry[_POSITION.size :] for entry in packed]
        counts.append(mapping[-1] + 1 - before)
    return Origins(np.array(mapping, dtype=np.int64), metadata), counts
