"""Rounds: every model and load gets a slice of time on the same rows before the next round begins.

The speed of a machine that other programs use too changes from minute to minute. If models were measured one after another,
minutes apart, their ratio would contain that change; here they are measured side by side in every round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from serving.reporting import logger


class TimedWay(Protocol):
    """A way of answering that is timed in turns with others."""

    @property
    def length(self) -> int | None:
        """Tokens of the rows; None: as they are."""

    def measure(self, rows: list[list[str]], seconds: float) -> None:
        """Measure the next round's slice."""


def measure_rounds(ways: Sequence[TimedWay], timed: Mapping[int | None, list[list[str]]], *, rounds: int, duration: float) -> None:
    """Time every way on the rows of one round, then of the next.

    Every other round runs in reverse order, so that no way always follows the same neighbour or always comes last.

    Args:
        ways: The ways.
        timed: The rows by their length.
        rounds: Number of rounds.
        duration: Seconds of timing per way, all rounds together.
    """
    for index in range(rounds):
        logger.info(f"round {index + 1} of {rounds}")
        for way in reversed(ways) if index % 2 else ways:
            way.measure(timed[way.length][index::rounds], duration / rounds)  # each row belongs to one round
