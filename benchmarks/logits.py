"""What models say of labelled rows before it becomes an answer: kept on disk by each worker, compared row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from serving.runtime.tasks.base import Arrays

MOST_BYTES = 2**28
"""Of what one model says; more is not kept, and not compared."""


class KeptOutputs:
    """The model's outputs for one row after another."""

    def __init__(self) -> None:
        self._rows: list[Arrays] = []
        self._bytes = 0

    def add(self, outputs: Arrays) -> None:
        """Keep those of the next row, ``[model rows, …]`` by name."""
        self._bytes += sum(values.nbytes for values in outputs.values())
        if self._bytes > MOST_BYTES:
            self._rows.clear()
        else:
            self._rows.append(outputs)

    def write(self, file: Path) -> None:
        """Write what was kept, nothing where it was too much or a library does not show it."""
        if self._bytes > MOST_BYTES or not self._bytes:
            return
        named = {f"{row}.{name}": values for row, outputs in enumerate(self._rows) for name, values in outputs.items()}
        np.savez(file, **named)  # type: ignore[arg-type]


def largest_difference(file: Path, original: Path) -> float | None:
    """Of any output for any row; None where one of the two was not kept. NaN where one is no number."""
    if not file.is_file() or not original.is_file():
        return None
    with np.load(file) as mine, np.load(original) as theirs:
        return max(float(np.abs(mine[name].astype(np.float64) - theirs[name]).max(initial=0.0)) for name in theirs.files)
