"""Packs and unpacks the tensor that travels around the model, from the first step of an ensemble to the last one.

It holds one entry per model row: the position of its request row, the digest of that row, and the task's metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .types import Integers, Origins

METADATA = "METADATA"
"""BYTES ``[model rows, 1]``: the position of the row's request row in its request (INT32), the digest of that row (INT64), then the
task's metadata."""

_HEAD = struct.Struct("<iq")


@dataclass(frozen=True)
class Unpacked:
    """The metadata of several requests, one after the other.

    Attributes:
        origins: The origins of all model rows.
        request_rows: The number of rows of each request.
        model_rows: The number of model rows of each request.
        digests: INT64 ``[model rows]``, the digest of the request row of each model row.
    """

    origins: Origins
    request_rows: list[int]
    model_rows: list[int]
    digests: Integers


def pack(sample_mapping: Integers, digests: Integers, metadata: Sequence[bytes]) -> npt.NDArray[np.object_]:
    """Build the tensor of one request.

    Args:
        sample_mapping: INT64 ``[model rows]``, starting at 0.
        digests: INT64 ``[model rows]``, the digest of the request row of each model row.
        metadata: One entry per model row.

    Returns:
        BYTES ``[model rows, 1]``.
    """
    packed = np.empty((len(sample_mapping), 1), dtype=np.object_)
    rows = zip(sample_mapping.tolist(), digests.tolist(), metadata, strict=True)
    packed[:, 0] = [_HEAD.pack(row, digest) + entry for row, digest, entry in rows]
    return packed


def unpack(tensors: Sequence[npt.NDArray[Any]]) -> Unpacked:
    """Read the tensors of several requests, one after the other.

    Args:
        tensors: As :func:`pack` made them, one per request.

    Raises:
        ValueError: A tensor was not made by :func:`pack`. Clients can send tensors to the last step directly.
    """
    mapping: list[int] = []
    metadata: list[bytes] = []
    digests: list[int] = []
    request_rows: list[int] = []
    model_rows: list[int] = []
    for tensor in tensors:
        packed = tensor[:, 0].tolist()
        before = sum(request_rows)
        heads = [_HEAD.unpack_from(entry) for entry in packed]
        own = [row for row, _ in heads]
        if not own or own[0] != 0 or any(two - one not in (0, 1) for one, two in pairwise(own)):
            raise ValueError("the sample mapping does not start at 0 or has a gap")
        mapping += [before + row for row in own]
        digests += [digest for _, digest in heads]
        metadata += [entry[_HEAD.size :] for entry in packed]
        request_rows.append(mapping[-1] + 1 - before)
        model_rows.append(len(packed))
    origins = Origins(np.array(mapping, dtype=np.int64), metadata)
    return Unpacked(origins, request_rows, model_rows, np.array(digests, dtype=np.int64))
