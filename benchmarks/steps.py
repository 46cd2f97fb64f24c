"""What Triton counts about the steps of an ensemble, between two readings of its statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from benchmarks.report import Step
from serving.errors import ServerError


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a step did in one or more slices of time.

    Args:
        executions, rows, requests: how many.
        queue_ns, compute_ns: time that requests waited, and spent in the step, added up over requests.
        busy_ns: time that executions took, added up over executions.
    """

    executions: int
    rows: int
    requests: int
    queue_ns: int
    compute_ns: int
    busy_ns: int

    def step(self) -> Step:
        """As means."""
        return Step(
            executed_batch=self.rows / self.executions,
            queue_us=self.queue_ns / self.requests / 1e3,
            compute_us=self.compute_ns / self.requests / 1e3,
            cost_us=self.busy_ns / self.rows / 1e3,
        )


def total(counts: Iterable[Counts]) -> Counts:
    """Several slices as one."""
    sums = (sum(column) for column in zip(*map(astuple, counts), strict=True))
    return Counts(**dict(zip(Counts.__dataclass_fields__, sums, strict=True)))


def counts_between(before: dict[str, Any], after: dict[str, Any], name: str) -> dict[str, Counts]:
    """What each step did between two readings of a server's statistics, by step without the ensemble's ``name``.

    Raises:
        ServerError: a step executed nothing.
    """
    return {model.removeprefix(f"{name}_"): _counts(model, before[model], after[model]) for model in before}


def _counts(model: str, before: Any, after: Any) -> Counts:
    earlier, later = before.inference_stats, after.inference_stats
    counts = Counts(
        executions=after.execution_count - before.execution_count,
        rows=after.inference_count - before.inference_count,
        requests=later.success.count - earlier.success.count,
        queue_ns=later.queue.ns - earlier.queue.ns,
        compute_ns=_compute_ns(later) - _compute_ns(earlier),
        busy_ns=sum(map(_compute_ns, after.batch_stats)) - sum(map(_compute_ns, before.batch_stats)),
    )
    if not counts.executions or not counts.requests:
        raise ServerError(
            f"{model} executed nothing while {model.rpartition('_')[0]} was under load",
            hint="does another server, or a cache, answer on these ports?",
        )
    return counts


def _compute_ns(statistics: Any) -> int:
    parts = (statistics.compute_input, statistics.compute_infer, statistics.compute_output)
    return sum(part.ns for part in parts)
