"""The highest of many scores: quickly, or in the order of ``torch.topk``, which beam search needs where equal scores decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..types import Floats

if TYPE_CHECKING:
    from .decoding import Positions

BLOCKS = 64
"""Blocks that scores are divided into, at least: only those with the highest maxima are searched."""
SCANNED = 4096
"""Scores that are compared at a time."""


def ranked_candidates(scores: Floats, count: int) -> tuple[Positions, int]:
    """Return the positions of the ``count`` highest scores, the highest first and equal ones in any order.

    Args:
        scores: FP32 ``[scores]``, none of them NaN.
        count: 1 or more, at most the number of scores.

    Returns:
        INTP ``[count]``, and how many of the first ones are certain: all up to the first of two equal scores.
    """
    size = len(scores) // max(BLOCKS, 4 * count)
    pool: Positions | None = None
    if size > 1:
        maxima = scores[: len(scores) // size * size].reshape(-1, size).max(axis=1)
        pool = np.flatnonzero(scores >= np.partition(maxima, -count)[-count])
    among = scores if pool is None else scores[pool]
    order = np.argsort(-among, kind="stable")[: count + 1]
    ranked = among[order]
    equal = np.flatnonzero(ranked[1:] == ranked[:-1])
    found = order[:count]
    return found if pool is None else pool[found], int(equal[0]) if len(equal) else count


def partial_sort(scores: Floats, count: int) -> Positions:
    """Sort as ``std::partial_sort`` of libstdc++ does: with a heap, whose form decides between equal scores.

    ``torch.topk`` uses it on a CPU, if there are 64 times as many scores as are returned.

    Args:
        scores: FP32 ``[scores]``, none of them NaN.
        count: 1 or more, at most the number of scores.

    Returns:
        INTP ``[count]``, the positions of the highest scores, the highest first. It takes 0.2 s for 4,000 of a million.
    """
    heap = list(zip(scores[:count].tolist(), range(count), strict=True))
    for parent in range(count // 2 - 1, -1, -1):
        _sift(heap, parent, count, heap[parent])
    place = count
    while place < len(scores):
        higher = np.flatnonzero(scores[place : place + SCANNED] > heap[0][0])
        if not len(higher):
            place += SCANNED
            continue
        place += int(higher[0])
        _sift(heap, 0, count, (float(scores[place]), place))
        place += 1
    for last in range(count - 1, 0, -1):
        moved, heap[last] = heap[last], heap[0]
        _sift(heap, 0, last, moved)
    return np.array([position for _, position in heap], dtype=np.intp)


def _sift(heap: list[tuple[float, int]], top: int, size: int, entry: tuple[float, int]) -> None:
    """Put an entry in the place of the one at ``top``, in the heap of the first ``size`` entries whose lowest score is first."""
    hole = top
    while 2 * hole + 1 < size:
        child = min(2 * hole + 2, size - 1)
        if heap[child][0] > heap[child - 1][0] and child == 2 * hole + 2:
            child -= 1
        heap[hole] = heap[child]
        hole = child
    while hole > top and heap[(hole - 1) // 2][0] > entry[0]:
        heap[hole] = heap[(hole - 1) // 2]
        hole = (hole - 1) // 2
    heap[hole] = entry
