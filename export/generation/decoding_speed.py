"""Measure how many tokens per second a decoder writes, on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from export.long_steps import tracked

ROWS_TOGETHER = 16
PASSES = 3
"""Number of passes, of which the fastest counts."""

Write = Callable[[Sequence[Sequence[int]], int], object]
"""Appends a number of tokens to each of some prompts of one length, all of them together."""


@dataclass(frozen=True, kw_only=True)
class DecodingSpeed:
    """Tokens per second on one thread, prompts included in the time.

    Attributes:
        alone: One row.
        together: 16 rows, all of their tokens counted.
    """

    alone: float
    together: float


def decoding_speeds(writers: Mapping[str, Write], prompt: Sequence[int], *, new_tokens: int) -> dict[str, DecodingSpeed]:
    """Measure each model on copies of one prompt. The models take turns, so that other load on the machine affects all alike.

    Args:
        writers: The models by name, each set to one thread.
        prompt: Tokens of the prompt.
        new_tokens: Number of tokens to append.

    Returns:
        The speed by name.
    """
    seconds: dict[tuple[str, int], list[float]] = {(name, rows): [] for name in writers for rows in (1, ROWS_TOGETHER)}
    for write in writers.values():
        write([prompt], 2)  # the first calls allocate memory
    for name, rows in tracked([*seconds] * PASSES, "speed"):
        started = time.perf_counter()
        writers[name]([prompt] * rows, new_tokens)
        seconds[name, rows].append(time.perf_counter() - started)
    rates = {(name, rows): rows * new_tokens / min(found) for (name, rows), found in seconds.items()}
    return {name: DecodingSpeed(alone=rates[name, 1], together=rates[name, ROWS_TOGETHER]) for name in writers}
