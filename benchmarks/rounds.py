"""Rounds: every model and load gets a slice of time on the same rows before the next round begins.

The speed of a machine that other programs use too changes from minute to minute. If models were measured one after another,
minutes apart, their ratio would contain that change; here they are measured side by side in every round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from benchmarks.inputs import BenchmarkInputs
from serving.reporting import logger


class Way(Protocol):
    """A way of answering that is ready to be timed: a loaded model with a batch size, or a load on the server."""

    @property
    def length(self) -> int | None:
        """Tokens of the rows that it is timed on; None: rows as they are."""

    def measure(self, rows: list[list[str]], seconds: float) -> None:
        """Answer ``rows`` repeatedly for ``seconds`` or longer and keep the result as the next round's."""


def measure_rounds(ways: Sequence[Way], inputs: BenchmarkInputs) -> None:
    """Time every way on the rows of one round, then of the next.

    Every other round runs in reverse order, so that no way always follows the same neighbour or always comes last.
    """
    rounds = inputs.options.rounds
    for index in range(rounds):
        logger.info(f"round {index + 1} of {rounds}")
        for way in reversed(ways) if index % 2 else ways:
            rows = inputs.rows.timed[way.length][index::rounds]  # each row belongs to one round
            way.measure(rows, inputs.options.duration / rounds)
