"""The outcome of a tuning, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.pages.formatting import number
from benchmarks.tuning.choice import Measured, OperatingPoint
from benchmarks.tuning.outcome import TuningOutcome
from serving.errors import GateError, ServerError
from serving.manifests import LoadRecord
from serving.text_table import aligned

HEADINGS = ("p99 ms", "clients", "MiB", "batch", "served as")


def table(outcome: TuningOutcome) -> Iterable[str]:
    """Return the lines of the Pareto front, with the default and the winner added if they are not on it."""
    points = outcome.frontier
    known = {(point.measured.configuration, point.level.concurrency) for point in points}
    for one in (outcome.winner, outcome.untuned):
        if one is not None and (one.configuration, one.shown.concurrency) not in known:
            points.append(OperatingPoint(measured=one, level=one.shown))
            known.add((one.configuration, one.shown.concurrency))
    points.sort(key=lambda point: -point.level.throughput)
    tokens = any(point.level.tokens_per_second is not None for point in points)
    head = ("tokens/s" if tokens else "rows/s", *HEADINGS)
    rows = [head, *((*_figures(point), f"{point.measured.configuration}{_remark(outcome, point)}") for point in points)]
    yield from aligned(rows, left=(len(HEADINGS),))


def summary(outcome: TuningOutcome) -> Iterable[str]:
    """Return lines on what failed, and on how the winner compares with the default."""
    for configuration, reason in outcome.failures.items():
        yield f"could not be served: {configuration}: {reason}"
    winner, untuned = outcome.winner, outcome.untuned
    if winner is None:
        return
    yield f"best: {winner.configuration}: {winner.shown}"
    if winner == untuned:
        yield "that is the untuned default: nothing else is better beyond measurement noise"
    elif untuned is None:
        yield f"the untuned default could not be served: {outcome.default}"
    elif outcome.ratio is None:
        yield f"the untuned default is too slow: {untuned.configuration}: {untuned.shown}"
    else:
        yield f"that is {outcome.ratio:.2f} times the untuned throughput: {untuned.configuration}: {untuned.shown}"


def require_winner(outcome: TuningOutcome) -> Measured:
    """Return the winner.

    Raises:
        GateError: No configuration is within the latency budget. The message names the nearest.
        ServerError: Every configuration of the final failed.
    """
    if outcome.winner is not None:
        return outcome.winner
    if not outcome.finalists:
        reason = next(iter(outcome.failures.values()))
        raise ServerError(f"every finalist failed in one of its rounds: {reason}", hint="measure again with --fresh")
    nearest = max(outcome.measured, key=lambda one: one.objective)
    raise GateError(
        f"no configuration stays within {outcome.latency_p99_ms:g} ms at p99; nearest is {nearest.configuration}: {nearest.shown}",
        hint="allow more with --latency-p99-ms, or measure fewer clients with --concurrency; nothing was packaged",
    )


def to_json(outcome: TuningOutcome) -> dict[str, Any]:
    """Return ``winner``, ``untuned``, ``ratio``, ``latency_p99_ms``, ``frontier`` and ``trials``, JSON-ready."""
    return {
        "winner": outcome.winner and _as_json(outcome.winner, outcome.winner.shown),
        "untuned": outcome.untuned and _as_json(outcome.untuned, outcome.untuned.shown),
        "ratio": outcome.ratio,
        "latency_p99_ms": outcome.latency_p99_ms,
        "frontier": [_as_json(point.measured, point.level) for point in outcome.frontier],
        "trials": [trial.model_dump(mode="json") for trial in outcome.trials],
    }


def _as_json(measured: Measured, level: LoadRecord) -> dict[str, Any]:
    return {**asdict(measured.configuration), **level.model_dump(), "memory_mib": measured.memory_mib}


def _figures(point: OperatingPoint) -> Sequence[str]:
    level = point.level
    memory = f"{point.measured.memory_mib:.0f}"
    # Without batching Triton counts requests that it handed over together, although each is executed alone.
    batch = "1.0" if point.measured.configuration.batching == "off" else number(level.executed_batch, ".1f")
    rate = level.throughput if level.tokens_per_second is None else level.tokens_per_second
    return f"{rate:.0f}", f"{level.p99_ms:.1f}", str(level.concurrency), memory, batch


def _remark(outcome: TuningOutcome, point: OperatingPoint) -> str:
    remarks = [
        word
        for word, one in (("best", outcome.winner), ("untuned", outcome.untuned))
        if one is not None and (one.configuration, one.shown) == (point.measured.configuration, point.level)
    ]
    return f"  ← {', '.join(remarks)}" if remarks else ""
