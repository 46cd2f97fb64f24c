"""Finds the parts of answers that a small difference of the model's outputs decides, such as the order of nearly equal labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.answer_comparison import Path, differences
from serving.runtime.types import Arrays

DRAWS = 16
"""How often the outputs are changed at random."""


def undecided_paths(
    answer: Callable[[Arrays], Sequence[Any]], outputs: Arrays, tolerance: float
) -> tuple[Sequence[Any], list[dict[Path, None]]]:
    """Answer from a model's outputs, and again from outputs that are slightly changed.

    Args:
        answer: Makes answers, structures of lists and dicts, from outputs. It may change its argument.
        outputs: The outputs.
        tolerance: The largest change of a number, relative to the largest of its tensor.

    Returns:
        The answers, and for each the paths at which it differed in other than floats, in the order in which they were found.
    """
    answers = answer({name: array.copy() for name, array in outputs.items()})
    found: list[dict[Path, None]] = [{} for _ in answers]
    chance = np.random.default_rng(0)
    for _ in range(DRAWS):
        for paths, one, other in zip(found, answers, answer(_changed(outputs, tolerance, chance)), strict=True):
            paths.update({path: None for path, *_ in differences(one, other, margin=math.inf)})
    return answers, found


def _changed(outputs: Arrays, tolerance: float, chance: np.random.Generator) -> Arrays:
    """Return outputs that each differ from the given ones by up to ``tolerance`` times the largest of their tensor."""
    changed = {}
    for name, array in outputs.items():
        margin = tolerance * np.abs(array).max(initial=0)
        changed[name] = (array + margin * chance.uniform(-1, 1, array.shape)).astype(array.dtype)
    return changed
