"""Answers to labelled rows as tensors: joining and comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.runtime.types import Arrays

SAME = 1e-3
"""Numbers that differ by no more than this are equal."""


def joined(parts: Sequence[Arrays]) -> Arrays:
    """Concatenate the rows of all parts."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def differences(answers: Arrays, original: Arrays) -> npt.NDArray[np.float64] | None:
    """Compute how far answers, tensors ``[rows, …]`` by name, differ from the original's: the maximum of each row.

    None if there are no floating-point tensors.
    """
    each = [
        np.abs(values.astype(np.float64) - original[name]).reshape(len(values), -1).max(axis=1, initial=0.0)
        for name, values in answers.items()
        if values.dtype.kind == "f"
    ]
    return np.maximum.reduce(each) if each else None


def largest_difference(answers: Arrays, original: Arrays) -> float | None:
    """Compute the largest of :func:`differences`; None without floating-point tensors."""
    found = differences(answers, original)
    return None if found is None else float(found.max(initial=0.0))


def same(mine: Any, theirs: Any) -> bool:
    """Whether two answers of a pipeline are equal, numbers to within :data:`SAME`."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(same(value, theirs[key]) for key, value in mine.items())
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(mine, float | np.floating) or isinstance(theirs, float | np.floating):
        return math.isclose(mine, theirs, rel_tol=0, abs_tol=SAME)
    return bool(mine == theirs)
