"""For tasks where a request row brings several candidates (labels, choices), each of which becomes a row for the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt


def require_few(candidates: Sequence[str], name: str, most: int | None) -> None:
    """Refuse a row that would become more than ``most`` rows for the model, before any work is done for it.

    Raises:
        ValueError: it has more candidates.
    """
    if most is not None and len(candidates) > most:
        raise ValueError(f"{name} holds {len(candidates)}, and the model takes {most} at once")


def starts_of(owners: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``[model rows]`` (ascending, none left out) → ``[request rows]``: the first of each one's rows."""
    return np.flatnonzero(np.diff(owners, prepend=-1))


def softmax_by_owner(values: npt.NDArray[np.float32], owners: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Softmax over each request row's candidates.

    Args:
        values: ``[model rows]``.
        owners: ``[model rows]``, ascending, none left out.

    Returns:
        ``[model rows]``.
    """
    starts = starts_of(owners)
    scores = np.exp(values - np.maximum.reduceat(values, starts)[owners])
    return cast("npt.NDArray[np.float32]", scores / np.add.reduceat(scores, starts)[owners])
