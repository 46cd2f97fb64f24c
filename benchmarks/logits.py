"""Model outputs for the labelled rows: each worker writes them row by row, and they are compared row by row."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from serving.runtime.types import Arrays

MOST_BYTES = 2**28
"""Maximum size of one model's outputs; larger ones are neither kept nor compared."""


class OutputsFile:
    """A ``.npz`` file of the model's outputs, written row by row: the memory of the process is measured."""

    def __init__(self, file: Path | None) -> None:
        """Write to ``file``; None keeps nothing."""
        self._file, self._rows, self._bytes = file, 0, 0

    def __enter__(self) -> Self:
        """Open the file."""
        self._archive = zipfile.ZipFile(self._file, "w") if self._file is not None else None
        return self

    def add(self, outputs: Arrays) -> None:
        """Write the outputs of the next row, ``[model rows, …]`` by name."""
        if self._archive is None or self._bytes > MOST_BYTES:
            return
        for name, values in outputs.items():
            with self._archive.open(f"{self._rows}.{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(values), allow_pickle=False)
            self._bytes += values.nbytes
        self._rows += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file; remove it if it is empty or too large."""
        if self._archive is None or self._file is None:
            return
        self._archive.close()
        if not 0 < self._bytes <= MOST_BYTES:
            self._file.unlink()


def largest_difference(file: Path, original: Path) -> float | None:
    """Compute the largest difference between two files of outputs.

    Returns:
        The largest difference; None if one of the two was not kept, or a difference is NaN or infinite.
    """
    if not file.is_file() or not original.is_file():
        return None
    with np.load(file) as mine, np.load(original) as theirs:
        largest = 0.0
        for name in theirs.files:
            difference = float(np.abs(mine[name].astype(np.float64) - theirs[name]).max(initial=0.0))
            if not math.isfinite(difference):
                return None
            largest = max(largest, difference)
        return largest
