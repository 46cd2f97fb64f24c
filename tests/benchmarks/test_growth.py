"""How cost grows: laws that are known are found again, and where none can be fitted it says why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.pages.growth import Growth, GrowthPoint, fitted_law, growths
from tests.helpers import made_up


def _points(throughputs: dict[int, float]) -> list[GrowthPoint]:
    return [GrowthPoint(x=x, throughput=found, low=0.9 * found, high=1.1 * found) for x, found in throughputs.items()]


def _of(name: str, axis: str, way: str = "") -> Growth:
    found = [growth for growth in growths(made_up.report()) if (growth.name, growth.axis) == (name, axis) and way in growth.way]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("name", ["pytorch.fp32", "onnx.int8"])
def test_the_cost_of_a_call_and_of_a_row_are_told_apart(name: str) -> None:
    growth = _of(name, "batch")
    assert growth.fit is not None and growth.why == ""
    assert list(growth.fit.coefficients.values()) == pytest.approx(made_up.CALL_MS[name], rel=1e-3)
    assert growth.fit.r2 == pytest.approx(1)
    assert [point.x for point in growth.points] == list(made_up.BATCHES), "those of other processes and threads are none of it"
    told = growth.fitted(np.array([float(batch) for batch in made_up.BATCHES]))
    assert told == pytest.approx([point.throughput for point in growth.points], rel=1e-3)


def test_processes_side_by_side_count() -> None:
    points = _points({batch: 3 * batch * 1000 / (2.0 + 5.0 * batch) for batch in (1, 4, 16)})
    fit, _ = fitted_law("batch", points, 3)
    assert fit is not None and list(fit.coefficients.values()) == pytest.approx([2.0, 5.0])
    assert "no batch gets more than 600 rows/s" in fit.meaning


def test_length_costs_linearly_and_by_its_square() -> None:
    start, each, square = made_up.LENGTH_MS
    scale = made_up.CALL_MS["onnx.fp32"][1]
    fit = _of("onnx.fp32", "length").fit
    assert fit is not None
    assert list(fit.coefficients.values()) == pytest.approx([scale * start, scale * each, scale * square], rel=1e-3)
    assert "at 128 tokens 37% of the time" in fit.meaning


def test_served_lengths_are_held_against_clients_in_flight() -> None:
    growth = _of("served.int8", "length")
    assert growth.way == "grpc, 16 clients" and growth.fit is not None
    assert growth.fit.r2 is None, "three coefficients fit any three points"
    told = growth.fitted(np.array([32.0, 64.0, 128.0]))
    assert told == pytest.approx([point.throughput for point in growth.points], rel=1e-3)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_law_of_scaling_is_found_again(protocol: str) -> None:
    growth = _of("served.int8", "concurrency", protocol)
    assert growth.fit is not None
    assert list(growth.fit.coefficients.values()) == pytest.approx(made_up.SCALING[protocol], rel=1e-3)
    assert growth.fit.r2 == pytest.approx(1)
    assert "the maximum is at" in growth.fit.meaning


def test_throughput_in_proportion_to_clients_has_no_most() -> None:
    fit, _ = fitted_law("concurrency", _points({1: 100.0, 2: 200.0, 4: 400.0, 8: 800.0}))
    assert fit is not None and fit.coefficients["λ"] == pytest.approx(100, rel=1e-3)
    assert fit.coefficients["σ"] == pytest.approx(0, abs=1e-4) and fit.coefficients["κ"] == pytest.approx(0, abs=1e-4)


def test_noise_does_not_make_a_cost_negative() -> None:
    noise = np.random.default_rng(0).normal(1, 0.1, 6)
    points = _points(dict(zip(made_up.BATCHES, (200.0 * noise).tolist(), strict=True)))
    fit, _ = fitted_law("batch", points)
    assert fit is not None and min(fit.coefficients.values()) >= 0 and fit.coefficients["b"] == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("axis", ["batch", "length", "concurrency"])
def test_too_few_points_are_no_law(axis: str) -> None:
    assert fitted_law(axis, _points({1: 10.0, 2: 15.0})) == (None, "2 points, a fit needs 3")


def test_two_points_are_told_without_a_fit_and_one_not_at_all() -> None:
    report = made_up.report()
    model = report.in_process[0]
    few = {name: model.arrangements[name] for name in ("b1", "b32", "b1l16")}
    found = growths(replace(report, in_process=[replace(model, arrangements=few)], served=None))
    assert [(growth.axis, len(growth.points), growth.fit) for growth in found] == [("batch", 2, None)]
    with pytest.raises(ValueError, match="has no fit"):
        found[0].fitted(np.array([1.0]))
