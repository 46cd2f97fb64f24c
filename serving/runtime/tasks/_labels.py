"""Helpers of tasks whose model gives one logit per label."""

from __future__ import annotations

import numpy as np

from ..types import Floats

OUTSIDE = "O"
"""Label of a word that belongs to no entity."""


def softmax(logits: Floats) -> Floats:
    """Compute the softmax over the last axis."""
    scores: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
