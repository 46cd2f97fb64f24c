"""Rounds: every model and load gets a slice of time on the same rows before the next round begins.

The speed of a machine that other programs use too changes from minute to minute. If models were measured one after another,
minutes apart, their ratio would contain that change; here they are measured side by side in every round.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.in_process import Batched
from benchmarks.inputs import BenchmarkInputs
from benchmarks.served import Clients
from serving.reporting import logger


def measure_rounds(ways: Sequence[Batched | Clients], inputs: BenchmarkInputs) -> None:
    """Time every way on the rows of one round, then of the next.

    Every other round runs in reverse order, so that no way always follows the same neighbour or always comes last.
    """
    rounds = inputs.options.rounds
    for index in range(rounds):
        logger.info(f"round {index + 1} of {rounds}")
        for way in reversed(ways) if index % 2 else ways:
            rows = inputs.rows.timed[way.length][index::rounds]  # each row belongs to one round
            way.measure(rows, inputs.options.duration / rounds)
