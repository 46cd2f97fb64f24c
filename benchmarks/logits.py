"""Model outputs for the labelled rows: each worker writes them row by row, and they are compared row by row."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from serving.runtime.types import Arrays

MOST_BYTES = 2**28
"""Maximum size of one model's outputs; larger ones are neither kept nor compared."""


@contextmanager
def outputs_file(file: Path | None) -> Iterator[Callable[[Arrays], None]]:
    """Open a ``.npz`` file that is written row by row, as the memory of the process is measured; None keeps nothing.

    Yields:
        Writes the outputs of the next row, ``[model rows, …]`` by name. The file is removed at the end if it is empty or too large.
    """
    if file is None:
        yield lambda _: None
        return
    rows = size = 0

    def add(outputs: Arrays) -> None:
        nonlocal rows, size
        if size > MOST_BYTES:
            return
        for name, values in outputs.items():
            with archive.open(f"{rows}.{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(values), allow_pickle=False)
            size += values.nbytes
        rows += 1

    try:
        with zipfile.ZipFile(file, "w") as archive:
            yield add
    finally:
        if not 0 < size <= MOST_BYTES:
            file.unlink()


def largest_difference(file: Path | None, original: Path | None) -> float | None:
    """Compute the largest difference between two files of outputs; None if one was not kept, or a difference is not finite."""
    if file is None or original is None or not file.is_file() or not original.is_file():
        return None
    with np.load(file) as mine, np.load(original) as theirs:
        largest = 0.0
        for name in theirs.files:
            difference = float(np.abs(mine[name].astype(np.float64) - theirs[name]).max(initial=0.0))
            if not math.isfinite(difference):
                return None
            largest = max(largest, difference)
        return largest
