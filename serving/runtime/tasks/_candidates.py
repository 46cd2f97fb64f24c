"""Helpers of tasks where a request row brings several candidates (labels, choices), each of which becomes a model row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from ..types import Floats, Integers


def require_few(candidates: Sequence[str], name: str, most: int | None) -> None:
    """Refuse a row that would become more than ``most`` model rows, before any work is done for it.

    Raises:
        ValueError: The row has more candidates.
    """
    if most is not None and len(candidates) > most:
        raise ValueError(f"{name} holds {len(candidates)}, and the model takes {most} at once")


def first_rows(sample_mapping: Integers) -> Integers:
    """Find the first model row of each request row.

    Args:
        sample_mapping: ``[model rows]``, ascending, without gaps.

    Returns:
        ``[request rows]``.
    """
    return np.flatnonzero(np.diff(sample_mapping, prepend=-1))


def softmax_by_sample(values: Floats, sample_mapping: Integers) -> Floats:
    """Compute the softmax over the candidates of each request row.

    Args:
        values: ``[model rows]``.
        sample_mapping: ``[model rows]``, ascending, without gaps.

    Returns:
        ``[model rows]``.
    """
    firsts = first_rows(sample_mapping)
    scores = np.exp(values - np.maximum.reduceat(values, firsts)[sample_mapping])
    return cast("Floats", scores / np.add.reduceat(scores, firsts)[sample_mapping])
