"""Measures how much the outputs for a row depend on the other rows of its batch."""

from __future__ import annotations

import numpy as np

from export.data import sample_indices
from export.rows import EncodedRows
from export.verify import BATCH, MAX_LOGIT_DIFFERENCE, Run
from serving.manifests import VariantGate

ROWS = 64
"""Number of rows that are run both alone and in batches."""


def batch_difference(run: Run, rows: EncodedRows, *, seed: int) -> float | None:
    """Run up to 64 rows alone and in batches of 16, padded to the longest row of each batch, and compare the outputs.

    Args:
        run: The model.
        rows: The rows to draw from.
        seed: Seed of the draw.

    Returns:
        The largest difference of two outputs for a row, without positions of padding; None if an output is NaN or infinite.
    """
    chosen = sample_indices(len(rows.lengths), ROWS, seed)
    np.random.default_rng(seed).shuffle(chosen)
    largest = 0.0
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH]
        together = run(rows.feed(batch))
        for place, row in enumerate(batch):
            for name, (alone,) in run(rows.feed([row])).items():
                among = together[name][place][tuple(map(slice, alone.shape))]
                difference = float(np.abs(among.astype(np.float64) - alone).max())
                if not np.isfinite(difference):
                    return None
                largest = max(largest, difference)
    return largest


def batch_gate(difference: float | None, largest: float) -> VariantGate:
    """Make the gate that the outputs for a row do not depend on the other rows of its batch.

    The limit is that of fp32 against PyTorch: a CPU may add the numbers of attention, which stays fp32, in another order if there
    is padding.

    Args:
        difference: What :func:`batch_difference` returned.
        largest: Largest logit of the original.
    """
    limit = MAX_LOGIT_DIFFERENCE * max(1.0, largest)
    found = "cannot be compared" if difference is None else f"differ by up to {difference:.2g}"
    return VariantGate(
        name="max_batch_difference",
        limit=limit,
        value=difference,
        interval=None,
        passed=difference is not None and difference <= limit,
        message=f"logits of a row alone and in a batch {found}, the limit is {limit:.2g}",
    )
