"""Prometheus metrics of an engine, on the page of Triton's metrics: tokens, requests, and the time to the first token.

Triton's own times of a model that generates end when the model has taken the request, so they do not tell these. The engine only
counts; what it has counted is told once a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import triton_python_backend_utils as pb_utils

from .engine import EngineCounts

REPORT_SECONDS = 1.0
"""Seconds between two reports: each is some messages to tritonserver. Nothing is reported that has not changed."""
COUNTERS: Mapping[str, tuple[str, Callable[[EngineCounts], float]]] = {
    "tritonize_generated_tokens_total": (
        "Tokens that the model has chosen; of beams, each counts",
        lambda counts: counts.first_tokens + counts.rows,
    ),
    "tritonize_prompt_tokens_total": ("Tokens of prompts that the decoder has read", lambda counts: counts.prompt_tokens),
    "tritonize_time_to_first_token_seconds_sum": (
        "Seconds from a request, or a row of it, to its first token",
        lambda counts: counts.first_token_seconds,
    ),
    "tritonize_time_to_first_token_seconds_count": (
        "Requests, or rows of them, that had their first token",
        lambda counts: counts.prompts,
    ),
}
"""Name, description and value of each counter."""
LOAD = "tritonize_generation_requests"
STATES = ("running", "waiting")


class Counting(Protocol):
    """An engine, as far as its metrics need it."""

    counts: EngineCounts

    def load(self) -> tuple[int, int]:
        """Return how many requests run, and how many wait."""
        ...


class EngineMetrics:
    """Tells Triton what an engine has counted, until it is closed.

    Args:
        engine: The engine.
        labels: Labels of all metrics.
        run: Has a function called in the thread that talks with Triton.
    """

    def __init__(self, engine: Counting, labels: Mapping[str, str], *, run: Callable[[Callable[[], None]], None]) -> None:
        self._engine, self._run = engine, run
        counter, gauge = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE
        # Triton removes a family, and its metrics, when nobody holds it any more
        self._families = [pb_utils.MetricFamily(name=name, description=said, kind=counter) for name, (said, _) in COUNTERS.items()]
        self._counters: list[Any] = [family.Metric(labels=dict(labels)) for family in self._families]
        loads = pb_utils.MetricFamily(name=LOAD, description="Requests, or rows of them, that are generated or wait", kind=gauge)
        self._families.append(loads)
        self._loads: list[Any] = [loads.Metric(labels={**labels, "state": state}) for state in STATES]
        self._told = [0.0] * (len(COUNTERS) + len(STATES))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell what was counted last, and nothing more."""
        self._closed.set()
        self._thread.join()
        self._run(self._report)

    def _watch(self) -> None:
        while not self._closed.wait(REPORT_SECONDS):
            if self._values() != self._told:
                self._run(self._report)

    def _values(self) -> list[float]:
        return [*(float(value(self._engine.counts)) for _, value in COUNTERS.values()), *map(float, self._engine.load())]

    def _report(self) -> None:
        values = self._values()
        changes = [(new, new - old) for new, old in zip(values, self._told, strict=True)]
        for metric, (_, added) in zip(self._counters, changes, strict=False):
            if added:
                metric.increment(added)
        for metric, (new, changed) in zip(self._loads, changes[len(COUNTERS) :], strict=True):
            if changed:
                metric.set(new)
        self._told = values
