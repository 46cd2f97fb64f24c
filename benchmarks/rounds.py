"""Rounds: every way of answering gets a slice of time on the same rows before the next round begins.

A machine that others use too changes its speed from minute to minute. Ways that are measured one after another, minutes apart,
would carry that in their ratio; here they stand side by side in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from benchmarks.inputs import BenchmarkInputs

Row = TypeVar("Row")


class Way(Protocol):
    """A way of answering, ready to be timed."""

    @property
    def length(self) -> int | None:
        """Tokens of the rows it is timed on; None: rows as they are."""

    def measure(self, rows: list[list[str]], seconds: float) -> None:
        """Answer ``rows``, again and again for ``seconds`` or longer, and keep what was measured as the next round's."""


def chunks(rows: Sequence[Row], rounds: int) -> list[Sequence[Row]]:
    """``rows`` dealt out to the rounds: each row to one round, as many to each as to the others, give or take one."""
    return [rows[first::rounds] for first in range(rounds)]


def measure_rounds(ways: Sequence[Way], inputs: BenchmarkInputs, say: Callable[[str], None]) -> None:
    """Time every way on the rows of one round, then of the next.

    Every other round runs in reverse, so that nobody always comes after the same neighbour, or always last.

    Args:
        say: told when a round begins.
    """
    dealt = {length: chunks(rows, inputs.rounds) for length, rows in inputs.rows.timed.items()}
    for index in range(inputs.rounds):
        say(f"round {index + 1} of {inputs.rounds}")
        for way in reversed(ways) if index % 2 else ways:
            way.measure(list(dealt[way.length][index]), inputs.duration / inputs.rounds)
