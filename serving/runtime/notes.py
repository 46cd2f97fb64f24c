"""What travels around the model, from the first step of an ensemble to the last: one note per row that the model sees."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .tasks.base import Origins

NOTES = "NOTES"
"""BYTES ``[model rows, 1]``: the position of the row's owner among its request's rows (INT32), then what the task noted."""

_OWNER = struct.Struct("<i")


def pack(owners: npt.NDArray[np.int64], notes: Sequence[bytes]) -> npt.NDArray[np.object_]:
    """The tensor of one request."""
    packed = np.empty((len(owners), 1), dtype=np.object_)
    packed[:, 0] = [_OWNER.pack(owner) + note for owner, note in zip(owners.tolist(), notes, strict=True)]
    return packed


def unpack(tensors: Sequence[npt.NDArray[np.object_]]) -> tuple[Origins, list[int]]:
    """The origins of several requests' model rows, one request behind the other; and how many rows each request has.

    Raises:
        ValueError: they are not of :func:`pack`'s making. Anybody may send tensors to the last step alone.
    """
    owners: list[int] = []
    notes: list[bytes] = []
    counts: list[int] = []
    for tensor in tensors:
        packed = tensor[:, 0].tolist()
        before = sum(counts)
        own = [_OWNER.unpack_from(note)[0] for note in packed]
        if not own or own[0] != 0 or any(two - one not in (0, 1) for one, two in pairwise(own)):
            raise ValueError("the owners of rows do not begin at 0 or leave one out")
        owners += [before + owner for owner in own]
        notes += [note[_OWNER.size :] for note in packed]
        counts.append(owners[-1] + 1 - before)
    return Origins(np.array(owners, dtype=np.int64), notes), counts
