"""Pools the vectors of a row's tokens to one, and compares such vectors; with numpy or torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

from serving.runtime.tasks.feature_extraction import TINY

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

MEAN, CLS, MAX, LAST = "mean", "cls", "max", "last"
POOLINGS = (MEAN, CLS, MAX, LAST)
FAR = 1e9
"""Subtracted from the values of padding, so that none of them is a maximum."""

Vectors = TypeVar("Vectors", "npt.NDArray[np.float32]", "torch.Tensor")
"""Arrays of numpy or tensors of torch, used through what both have."""


def pooled(hidden: Vectors, mask: Vectors, pooling: str) -> Vectors:
    """Pool ``[rows, longest, hidden]`` by a mask ``[rows, longest]`` of the same data type; padding is on the right."""
    if pooling == CLS:
        return hidden[:, 0]
    if pooling == MAX:
        kept = hidden - FAR * (1 - mask)[:, :, None]
        return cast("Vectors", getattr(kept, "amax", kept.max)(1))  # torch's max gives positions too
    weights = mask
    if pooling == LAST:
        weights = mask * (mask.cumsum(1) == mask.sum(1)[:, None])
    return cast("Vectors", ((weights / weights.sum(1)[:, None])[:, None] @ hidden)[:, 0])


def halves(rows: Vectors) -> tuple[Vectors, Vectors]:
    """Split rows into the first and the second texts of all pairs."""
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def cosines(first: Vectors, second: Vectors) -> Vectors:
    """Compute the cosine of each row of one with the same row of the other: ``[rows]``."""
    squares = (first * first).sum(-1) * (second * second).sum(-1)
    return cast("Vectors", (first * second).sum(-1) / (squares + TINY**2) ** 0.5)
