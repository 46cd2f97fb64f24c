"""What tasks with labels have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""Target of a position that teaches nothing: the losses of ``transformers`` pass over it."""


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """A checkpoint's labels in the order of its logits."""
    id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # what transformers assumes where none are given
    return tuple(label for _, label in sorted((int(index), str(label)) for index, label in id2label.items()))


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Over the last axis."""
    scores: npt.NDArray[np.float32] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
