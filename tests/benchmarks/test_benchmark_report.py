"""What a report states: the quality it is given, and the message of gates that failed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import logits
from benchmarks.answers import largest_difference, same
from benchmarks.inputs import BenchmarkRows
from benchmarks.logits import outputs_file
from benchmarks.quality import calibration_error, evaluate
from benchmarks.run import require_passed
from benchmarks.verdicts import BenchmarkGate, FigureComparison, Miss
from export import metric
from serving.errors import GateError
from tests.helpers import made_up
from tests.helpers.tasks import classification


def test_quality_compares_labels_scores_and_the_metric() -> None:
    task = classification(("no", "yes"))

    def tensors(*yes: float) -> dict[str, Any]:
        scores = np.array([[1 - score, score] for score in yes], dtype=np.float32)
        return {"LABEL": np.array([[b"yes" if score > 0.5 else b"no"] for score in yes]), "SCORES": scores}

    original = tensors(0.9, 0.2, 0.6, 0.4)
    rows = BenchmarkRows(timed={}, labelled=[["a"], ["b"], ["c"], ["d"]], references=[1, 0, 1, 1])
    quality = evaluate(task, rows, tensors(0.9, 0.25, 0.4, 0.4), original)
    assert quality.rows == 4
    assert quality.agreement == 0.75
    assert quality.max_score_difference == pytest.approx(0.2)
    assert quality.metrics["accuracy"] == 0.5
    assert quality.drop is not None and quality.drop.value == 0.25 and quality.drop.low <= 0.25 <= quality.drop.high
    assert quality.main is not None and quality.main.value == 0.5 and 0 <= quality.main.low < quality.main.high <= 1
    worst, next_one = quality.changed_answers
    assert (worst.row, worst.texts, worst.reference, worst.original, worst.answer) == (2, {"TEXT": "c"}, "yes", "yes", "no")
    assert (worst.difference, next_one.row) == (pytest.approx(0.2), 1), "another label first, then the other score; equal rows not"
    itself = evaluate(task, rows, original, None)
    assert (itself.metrics["accuracy"], itself.agreement, itself.drop, itself.changed_answers) == (0.75, 1, None, [])


def test_an_interval_of_rows_that_are_all_right_has_a_width() -> None:
    value, low, high = metric.bootstrapped("accuracy", "accuracy", [1] * 20, [1] * 20)
    assert (value, high) == (1, 1) and 0.8 < low < 0.9, "of 20 rows none was wrong: up to one in six may be"
    assert metric.bootstrapped("accuracy", "accuracy", [0] * 20, [1] * 20)[:2] == (0, 0)
    numbers = np.linspace(0, 1, 20)
    drop, (least, most) = metric.bootstrapped_drop("correlation", "spearman", numbers, numbers + 1e-9, numbers)
    assert drop == pytest.approx(0, abs=1e-6) and least < -0.1 and most > 0.1, "rounding is no certainty"


def test_calibration_is_how_far_scores_are_from_how_often_they_are_right() -> None:
    confidence = np.array([0.95] * 20 + [0.6] * 10)
    right = [1] * 19 + [0] + [1] * 3 + [0] * 7
    assert calibration_error(confidence, right, [1] * 30) == pytest.approx((20 * 0.0 + 10 * 0.3) / 30)
    assert calibration_error(np.array([1.0]), [1], [1]) == 0
    assert calibration_error(None, right, [1] * 30) is None


def test_what_models_say_is_compared_row_by_row(tmp_path: Path) -> None:
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for file, shift in zip(files, (0.0, 0.25), strict=True):
        with outputs_file(file) as add:
            add({"logits": np.zeros((1, 2), np.float32)})
            add({"logits": np.array([[1.0, -shift]], np.float32)})
    assert logits.largest_difference(files[1], files[0]) == 0.25
    assert logits.largest_difference(tmp_path / "absent.npz", files[0]) is None
    for outputs in ({}, {"logits": np.zeros((1, 1 + logits.MOST_BYTES // 4), np.float32)}):
        with outputs_file(tmp_path / "nothing.npz") as add:
            add(outputs)
        assert not (tmp_path / "nothing.npz").exists()
    with outputs_file(tmp_path / "broken.npz") as add:
        add({"logits": np.array([[np.nan, 0]], np.float32)})
        add({"logits": np.zeros((1, 2), np.float32)})
    assert logits.largest_difference(tmp_path / "broken.npz", files[0]) is None


def test_what_is_no_number_is_counted_and_loses_nothing_else() -> None:
    task = classification(("no", "yes"))
    scores = np.array([[np.nan, np.nan], [0.2, 0.8]], dtype=np.float32)
    original = {"LABEL": np.array([[b"no"], [b"yes"]], dtype=object), "SCORES": np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)}
    rows = BenchmarkRows(timed={}, labelled=[["a"], ["b"]], references=[0, 1])
    quality = evaluate(task, rows, original | {"SCORES": scores}, original)
    assert quality.not_finite == 1 and quality.changed_answers[0].row == 0
    assert (quality.max_score_difference, quality.calibration_error, quality.changed_answers[0].difference) == (None, None, None)
    json.dumps(asdict(quality), allow_nan=False)


def test_the_same_answers_are_the_same_up_to_rounding() -> None:
    answer = [{"label": "yes", "score": 0.9, "at": [1, 2]}]
    assert same(answer, [{"label": "yes", "score": 0.9005, "at": [1, 2]}])
    for other in ({"label": "no", "score": 0.9, "at": [1, 2]}, {"label": "yes", "score": 0.91, "at": [1, 2]},
                  {"label": "yes", "score": 0.9, "at": [1, 3]}, {"label": "yes", "score": 0.9, "at": [1]},
                  {"label": "yes", "score": 0.9}):  # fmt: skip
        assert not same(answer, [other])
    assert not same(answer, answer * 2)
    assert same([np.float32(0.9)], [0.9005]) and not same([np.float32(0.9)], [0.91])
    assert largest_difference({"LABEL": np.array([[b"yes"]])}, {"LABEL": np.array([[b"no"]])}) is None


def test_failed_gates_and_regressions_are_named_with_their_figures() -> None:
    require_passed(made_up.report(gates=[BenchmarkGate(expression="a > 1", comparison="2 > 1", held=3, rounds=5, passed=True)]))
    gates = [
        BenchmarkGate(expression="a > 1", comparison="2 > 1", held=3, rounds=5, passed=True),
        BenchmarkGate(expression="b > 1", comparison="0.5 > 1", held=2, rounds=5, passed=False, missed=Miss(value=0.5, limit=1)),
    ]
    regressions = [
        FigureComparison(
            figure=f"m{9 - index}.throughput", before=100.0, now=71.0 + index, change=-0.29 + index / 100, verdict="worse"
        )
        for index in range(7)
    ]
    with pytest.raises(GateError) as raised:
        require_passed(made_up.report(gates=gates, baseline=made_up.compared(*regressions)))
    message = raised.value.message
    assert "1 of 2 gates failed: b > 1: 0.5 > 1, in 2 of 5 rounds, 50 % short" in message
    assert "7 figures are worse than the baseline allows: m9.throughput went from 100 to 71 (-29.0%)" in message
    assert message.endswith("and 2 more")
