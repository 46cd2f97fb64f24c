"""What an engine counts is told to Triton: as increments and gauges, and only what has changed."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serving.runtime.generation.engine import EngineCounts
from tests.helpers.engine_requests import Make, ask
from tests.helpers.triton_steps import backend

MODULE = "serving.runtime.generation.engine_metrics"
TOLD: dict[tuple[str, str], float] = {}
"""The metrics, by name and state."""
CALLS: list[str] = []


class Metric:
    def __init__(self, name: str, kind: str, labels: dict[str, str]) -> None:
        self._key, self._kind = (name, labels.pop("state", "")), kind
        assert labels == {"model": "chat", "version": "3"}
        TOLD[self._key] = 0.0

    def increment(self, value: float) -> None:
        assert self._kind == "counter" and value > 0
        CALLS.append(self._key[0])
        TOLD[self._key] += value

    def set(self, value: float) -> None:
        assert self._kind == "gauge"
        CALLS.append(self._key[0])
        TOLD[self._key] = value


class MetricFamily:
    """Triton's, as far as it is used."""

    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, *, name: str, description: str, kind: str) -> None:
        assert description
        self._name, self._kind = name, kind

    def Metric(self, *, labels: dict[str, str]) -> Metric:  # noqa: N802 - the name is Triton's
        return Metric(self._name, self._kind, labels)


class Counted:
    """An engine that has counted something."""

    def __init__(self) -> None:
        self.counts, self.now = EngineCounts(), (0, 0)

    def load(self) -> tuple[int, int]:
        return self.now


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = backend()
    module.MetricFamily = MetricFamily  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    TOLD.clear()
    CALLS.clear()
    imported = importlib.import_module(MODULE)
    monkeypatch.setattr(imported, "REPORT_SECONDS", 0.01)
    yield imported
    sys.modules.pop(MODULE)


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_counters_and_gauges_follow_the_engine(metrics: Any) -> None:
    engine = Counted()
    told = metrics.EngineMetrics(engine, {"model": "chat", "version": "3"}, run=lambda task: task())
    assert set(TOLD.values()) == {0.0} and len(TOLD) == 6, "all are there before the first request"
    engine.counts = EngineCounts(steps=9, rows=20, prompts=2, prompt_tokens=31, first_tokens=4, first_token_seconds=0.5)
    engine.now = (2, 7)
    wait(lambda: TOLD["tritonize_generation_requests", "waiting"] == 7)
    assert TOLD == {
        ("tritonize_generated_tokens_total", ""): 24,
        ("tritonize_prompt_tokens_total", ""): 31,
        ("tritonize_time_to_first_token_seconds_sum", ""): 0.5,
        ("tritonize_time_to_first_token_seconds_count", ""): 2,
        ("tritonize_generation_requests", "running"): 2,
        ("tritonize_generation_requests", "waiting"): 7,
    }
    del CALLS[:]
    time.sleep(0.1)
    assert not CALLS, "nothing has changed"
    engine.now = (0, 7)
    engine.counts.rows += 1
    told.close()
    assert sorted(CALLS) == ["tritonize_generated_tokens_total", "tritonize_generation_requests"]
    assert TOLD["tritonize_generated_tokens_total", ""] == 25 and TOLD["tritonize_generation_requests", "running"] == 0


def test_an_engine_counts_tokens_and_the_time_to_the_first(make: Make) -> None:
    engine, _ = make()
    assert engine.load() == (0, 0)
    waiting = [ask([1, 2, 3], 5), ask([4, 5], 4, num_return_sequences=2, do_sample=True)]
    engine.submit(*(one.request for one in waiting))
    assert engine.load() == (0, 2)
    engine.round()
    assert engine.load() == (2, 0)
    while engine.load() != (0, 0):
        engine.round()
    chosen = sum(len(sequence) for one in waiting for sequence in one.tokens)
    assert engine.counts.first_tokens + engine.counts.rows == chosen
    assert (engine.counts.prompts, engine.counts.prompt_tokens) == (2, 5)
    assert 0 < engine.counts.first_token_seconds < 60
