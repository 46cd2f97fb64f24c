"""Triton's counts of the steps of an ensemble between two readings of its statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from benchmarks.measurements import Split, Step
from serving.errors import ServerError
from serving.model_names import read_model_name

ENSEMBLE = "ensemble"
"""Key of the counts of the whole ensemble beside those of its steps."""
STEPS = ("preprocess", "model", "postprocess")
"""Steps that have a part of a request's time. A single model is the step ``model``, and does the work of all."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of a step in one or more slices of time.

    Attributes:
        queue_ns: Time that requests waited, summed over requests.
        compute_ns: Time that requests spent in the step, summed over requests.
        total_ns: Time from arrival to answer, summed over requests.
        busy_ns: Duration of executions, summed over executions.
    """

    executions: int
    rows: int
    requests: int
    queue_ns: int
    compute_ns: int
    total_ns: int
    busy_ns: int

    def step(self) -> Step:
        """Convert into means."""
        return Step(
            executed_batch=self.rows / self.executions,
            queue_us=self.queue_ns / self.requests / 1e3,
            compute_us=self.compute_ns / self.requests / 1e3,
            cost_us=self.busy_ns / self.rows / 1e3,
        )


def total(counts: Iterable[Counts]) -> Counts:
    """Sum the counts of several slices."""
    sums = (sum(column) for column in zip(*map(astuple, counts), strict=True))
    return Counts(**dict(zip(Counts.__dataclass_fields__, sums, strict=True)))


def counts_between(before: dict[str, Any], after: dict[str, Any], name: str) -> dict[str, Counts]:
    """Count what each step did between two readings of a server's statistics.

    Returns:
        Counts by step without the ensemble's name, and of the whole under :data:`ENSEMBLE`. A single model is its step ``model``.

    Raises:
        ServerError: A step executed nothing.
    """
    steps = {model: (of and of.step) or ENSEMBLE for model in before for of in [read_model_name(model)]}
    counts = {step: _counts(model, before[model], after[model], called=name) for model, step in steps.items()}
    return counts if "model" in counts else counts | {"model": counts[ENSEMBLE]}  # a single model has no steps


def split(counts: Mapping[str, Counts], *, mean_us: float, client_us: float) -> Split:
    """Split the mean latency of a request that clients measured, µs, into its parts; the client's own part is known."""
    requests = counts[ENSEMBLE].requests
    steps = {name: counts[name].compute_ns / requests / 1e3 if name in counts else 0.0 for name in STEPS}
    queue = sum(counts[name].queue_ns for name in STEPS if name in counts) / requests / 1e3
    inside = counts[ENSEMBLE].total_ns / requests / 1e3
    # Requests in flight when counting began or ended may make one side a little larger than the other.
    return Split(
        client=client_us,
        network=max(0.0, mean_us - client_us - inside),
        queue=queue,
        **steps,
        ensemble=max(0.0, inside - queue - sum(steps.values())),
    )


def _counts(model: str, before: Any, after: Any, *, called: str) -> Counts:
    earlier, later = before.inference_stats, after.inference_stats
    counts = Counts(
        executions=after.execution_count - before.execution_count,
        rows=after.inference_count - before.inference_count,
        requests=later.success.count - earlier.success.count,
        queue_ns=later.queue.ns - earlier.queue.ns,
        compute_ns=_compute_ns(later) - _compute_ns(earlier),
        total_ns=later.success.ns - earlier.success.ns,
        busy_ns=sum(map(_compute_ns, after.batch_stats)) - sum(map(_compute_ns, before.batch_stats)),
    )
    if not counts.executions or not counts.requests:
        raise ServerError(
            f"{model} executed nothing while {called} was under load",
            hint="does another server, or a cache, answer on these ports?",
        )
    return counts


def _compute_ns(statistics: Any) -> int:
    parts = (statistics.compute_input, statistics.compute_infer, statistics.compute_output)
    return sum(part.ns for part in parts)
