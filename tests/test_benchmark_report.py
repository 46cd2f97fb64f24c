"""The report: its figures, its files, its gates' message; and the quality it states."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import logits
from benchmarks.answers import from_json, largest_difference, same
from benchmarks.answers import to_json as answers_to_json
from benchmarks.gates import check_gate
from benchmarks.logits import KeptOutputs
from benchmarks.machine import environment
from benchmarks.markdown import render
from benchmarks.quality import calibration_error, judge
from benchmarks.report import (
    SCHEMA_VERSION,
    Arrangement,
    Gate,
    InProcess,
    Load,
    Quality,
    Regression,
    Report,
    Served,
    Split,
    Step,
)
from benchmarks.report_file import read_report, spans_of, to_json, write_report
from benchmarks.run import require_passed
from benchmarks.speed import Speed, as_spans
from benchmarks.study import Rows
from serving.errors import DataError, GateError
from serving.runtime.tasks.base import Origins
from serving.runtime.tasks.text_classification import TextClassification


def test_quality_compares_labels_scores_and_the_metric() -> None:
    task = TextClassification(labels=("no", "yes"), function_to_apply="softmax")

    def tensors(*yes: float) -> dict[str, Any]:
        scores = np.array([[1 - score, score] for score in yes], dtype=np.float32)
        return {"LABEL": np.array([[b"yes" if score > 0.5 else b"no"] for score in yes]), "SCORES": scores}

    original = tensors(0.9, 0.2, 0.6, 0.4)
    rows = Rows(timed={}, labelled=[["a"], ["b"], ["c"], ["d"]], references=[1, 0, 1, 1])
    quality = judge(task, rows, tensors(0.9, 0.25, 0.4, 0.4), original)
    assert quality.rows == 4
    assert quality.agreement == 0.75
    assert quality.max_score_difference == pytest.approx(0.2)
    assert quality.metrics["accuracy"] == 0.5
    assert quality.drop is not None and quality.drop.value == 0.25 and quality.drop.low <= 0.25 <= quality.drop.high
    assert quality.main is not None and quality.main.value == 0.5 and 0 <= quality.main.low < quality.main.high <= 1
    worst, next_one = quality.moved
    assert (worst.row, worst.texts, worst.reference, worst.original, worst.answer) == (2, {"TEXT": "c"}, "yes", "yes", "no")
    assert (worst.difference, next_one.row) == (pytest.approx(0.2), 1), "another label first, then the other score; equal rows not"
    itself = judge(task, rows, original, None)
    assert (itself.metrics["accuracy"], itself.agreement, itself.drop, itself.moved) == (0.75, 1, None, [])


def test_calibration_is_how_far_scores_are_from_how_often_they_are_right() -> None:
    confidence = np.array([0.95] * 20 + [0.6] * 10)
    right = [1] * 19 + [0] + [1] * 3 + [0] * 7
    assert calibration_error(confidence, right, [1] * 30) == pytest.approx((20 * 0.0 + 10 * 0.3) / 30)
    assert calibration_error(np.array([1.0]), [1], [1]) == 0
    assert calibration_error(None, right, [1] * 30) is None


def test_what_models_say_is_compared_row_by_row(tmp_path: Path) -> None:
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for file, shift in zip(files, (0.0, 0.25), strict=True):
        kept = KeptOutputs()
        kept.add({"logits": np.zeros((1, 2), np.float32)})
        kept.add({"logits": np.array([[1.0, -shift]], np.float32)})
        kept.write(file)
    assert logits.largest_difference(files[1], files[0]) == 0.25
    assert logits.largest_difference(tmp_path / "absent.npz", files[0]) is None
    KeptOutputs().write(tmp_path / "nothing.npz")
    assert not (tmp_path / "nothing.npz").exists()


def test_the_same_answers_are_the_same_up_to_rounding() -> None:
    answer = [{"label": "yes", "score": 0.9, "at": [1, 2]}]
    assert same(answer, [{"label": "yes", "score": 0.9005, "at": [1, 2]}])
    for other in ({"label": "no", "score": 0.9, "at": [1, 2]}, {"label": "yes", "score": 0.91, "at": [1, 2]},
                  {"label": "yes", "score": 0.9, "at": [1, 3]}, {"label": "yes", "score": 0.9, "at": [1]},
                  {"label": "yes", "score": 0.9}):  # fmt: skip
        assert not same(answer, [other])
    assert not same(answer, answer * 2)


def test_answers_survive_their_way_from_process_to_process() -> None:
    task = TextClassification(labels=("no", "oui, déjà vu"), function_to_apply="softmax")
    outputs = {"logits": np.array([[0.1, 2.5], [3.0, -1.0]], dtype=np.float32)}
    answers = task.answers(outputs, Origins(np.arange(2)), task.request_options({}))
    again = from_json(task, json.loads(json.dumps(answers_to_json(answers))))
    assert answers.keys() == again.keys()
    for name, values in answers.items():
        assert (values == again[name]).all() and values.dtype == again[name].dtype
    assert largest_difference({"LABEL": answers["LABEL"]}, answers) is None


def _speed(throughput: float, latency: float) -> Speed:
    return Speed(throughput=throughput, throughput_low=throughput - 20, throughput_high=throughput + 30, p50_ms=latency,
                 p90_ms=latency + 1, p95_ms=latency + 2, p99_ms=latency + 3, calls=100, seconds=1.0)  # fmt: skip


@pytest.fixture
def report() -> Report:
    """A report made up so that no two figures are alike."""

    def arrangement(name: str, throughput: float, latency: float) -> Arrangement:
        return Arrangement(name=name, processes=1, threads=2, batch=1, speed=_speed(throughput, latency), load_seconds=latency / 10,
                           first_answer_seconds=0.1, peak_rss_mib=throughput * 2, gpu_memory_mib=None)  # fmt: skip

    quality = Quality(rows=5, metrics={"f1": 0.8, "accuracy": 0.875}, agreement=0.99, max_score_difference=0.01)
    arrangements = {one.name: one for one in (arrangement("b1", 90.0, 11.0), arrangement("b32", 136.0, 230.0))}
    model = InProcess(
        kind="pytorch",
        precision="fp32",
        device="cpu",
        file="model.safetensors",
        sha256="0",
        size_mib=87.0,
        fused_operators=None,
        arrangements=arrangements,
        quality=quality,
    )
    step = Step(executed_batch=2.5, queue_us=10, compute_us=20, cost_us=8)
    parts = Split(client=1, network=2, queue=3, preprocess=4, model=5, postprocess=6, ensemble=7)
    loads = [Load(protocol=protocol, concurrency=16, speed=_speed(throughput, 40.0), executed_batch=2.5, steps={"model": step}, split=parts)
             for protocol, throughput in (("grpc", 400.0), ("http", 380.0))]  # fmt: skip
    served = Served(precision="int8", package={"batching": "off"}, sha256="1", server="triton 2.51.0", loads=loads, quality=quality,
                    load_seconds=4.5, peak_rss_mib=350.0, pss_mib=None, gpu_memory_mib=None, size_mib=23.0)  # fmt: skip
    return Report(
        name="reviews",
        task="text-classification",
        created="2020-01-01",
        main_metric="accuracy",
        environment=environment() | {"stolen_percent": 0.4},
        settings={"rows": 5, "labelled_rows": 5, "duration": 1.0, "rounds": 3},
        in_process=[model],
        served=served,
        rounds=[
            {"pytorch.fp32.throughput": original, "served.int8.c16.throughput": mine}
            for original, mine in ((116.0, 380.0), (136.0, 400.0), (166.0, 430.0))
        ],
        gates=[],
        regressions=[],
    )


def test_figures_have_the_names_that_gates_use(report: Report) -> None:
    figures = report.figures()
    expected = {
        "pytorch.fp32.b1.throughput": 90.0, "pytorch.fp32.b32.throughput": 136.0, "pytorch.fp32.b32.p99_ms": 233.0,
        "pytorch.fp32.throughput": 136.0, "pytorch.fp32.p50_ms": 11.0, "pytorch.fp32.p99_ms": 14.0, "pytorch.fp32.accuracy": 0.875,
        "pytorch.fp32.load_seconds": 23.0, "pytorch.fp32.peak_rss_mib": 272.0, "pytorch.fp32.agreement": 0.99,
        "served.int8.c16.throughput": 400.0, "served.int8.http.c16.throughput": 380.0, "served.int8.c16.executed_batch": 2.5,
        "served.int8.c16.model.cost_us": 8.0, "served.int8.accuracy": 0.875, "served.int8.peak_rss_mib": 350.0,
        "served.int8.load_seconds": 4.5, "served.int8.c16.calls": 100.0, "served.int8.c16.throughput_low": 380.0,
        "pytorch.fp32.throughput_low": 116.0, "pytorch.fp32.throughput_high": 166.0,
    }  # fmt: skip
    assert {name: figures.get(name) for name in expected} == expected
    assert not any("gpu" in name or "pss" in name for name in figures), "what was not measured is no figure"
    for name in figures:
        assert check_gate(f"{name} >= {figures[name]!r}", [figures]).passed, "every figure can stand in a gate"


def test_every_round_has_all_figures_its_own_where_they_differ(report: Report) -> None:
    figures, rounds = report.figures(), report.figures_by_round()
    assert [set(found) for found in rounds] == [set(figures)] * 3
    assert [found["served.int8.c16.throughput"] for found in rounds] == [380.0, 400.0, 430.0]
    assert [found["served.int8.accuracy"] for found in rounds] == [0.875] * 3
    gate = check_gate("served.int8.c16.throughput >= 3 * pytorch.fp32.throughput * served.int8.agreement", rounds)
    assert (gate.held, gate.passed) == (1, False), "380 of 344.5, 400 of 403.9, 430 of 493"


def test_a_report_survives_being_written_and_read(report: Report, tmp_path: Path) -> None:
    first, second = as_spans([(10_000, 15_000), (17_000, 19_100)]), as_spans([(40_000, 41_000)])
    write_report(tmp_path, report, {"onnx.fp32.p1t1.r1.0": first, "onnx.fp32.p1t1.r1.1": second}, render(report))
    again, samples = read_report(tmp_path / "report.json")
    assert again == report
    assert samples["onnx.fp32.p1t1.r1.0"] == {"start_us": [0.0, 7.0], "took_us": [5.0, 2.1]}
    assert spans_of(samples["onnx.fp32.p1t1.r1.1"]).tolist() == [[30_000, 31_000]], "on one clock"
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["rounds"] == report.rounds
    assert content["in_process"][0]["arrangements"]["b32"]["speed"]["throughput"] == 136.0
    assert content["environment"]["cores"] >= 1 and content["environment"]["cpu"]
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| `pytorch.fp32.b32` (best) | 1 × 2, 1 | 136 (116–166) | 230.00 |" in markdown
    assert "| grpc | 16 | 400 (380–430) | 40.00 | 41.00 | 42.00 | 43.00 | 2.50 |" in markdown
    assert "run one by one" in markdown
    assert "| `served.int8` | 0.8750 | 0.8000 | 99.00% | 0.01 | 5 |" in markdown


def test_a_wide_spread_is_told_under_the_table_it_stands_in(report: Report) -> None:
    told = "rounds differ by up to ×"
    in_process, served = render(report).split("## Served")
    assert f"{told}1.7. Compare by the gates' rounds" in in_process, "120 over 70 rows/s of b1"
    assert told not in served, "430 over 380"
    steady = replace(_speed(100.0, 5.0), throughput_low=100.0, throughput_high=100.0)
    arrangements = {name: replace(one, speed=steady) for name, one in report.in_process[0].arrangements.items()}
    markdown = render(replace(report, in_process=[replace(report.in_process[0], arrangements=arrangements)]))
    assert told not in markdown
    assert "| 100 | 5.00 |" in markdown, "rounds that agree need no spread"


@pytest.mark.parametrize(("percent", "told"), [(None, False), (0.9, False), (12.4, True)])
def test_time_that_the_host_took_away_is_told_with_the_machine(report: Report, percent: float | None, told: bool) -> None:
    markdown = render(replace(report, environment=report.environment | {"stolen_percent": percent}))
    assert ("the host took 12 % of the processor time away" in markdown) is told
    assert ("the host took" in markdown) is told


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema_version": 1, "figures": {}}', f'{{"schema_version": {SCHEMA_VERSION}}}']
)
def test_a_baseline_that_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(DataError, match="is not a benchmark report"):
        read_report(path)
    with pytest.raises(DataError, match="no report"):
        read_report(tmp_path / "absent.json")


def test_a_report_with_a_figure_of_another_kind_is_refused(report: Report, tmp_path: Path) -> None:
    content = to_json(report, {})
    content["served"]["loads"][0]["speed"]["throughput"] = "fast"
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"not a whole benchmark report: served\.loads\.0\.speed\.throughput: "):
        read_report(tmp_path / "report.json")


def test_failed_gates_and_regressions_are_named_with_their_figures(report: Report) -> None:
    require_passed(replace(report, gates=[Gate(expression="a > 1", comparison="2 > 1", held=3, rounds=5, passed=True)]))
    gates = [
        Gate(expression="a > 1", comparison="2 > 1", held=3, rounds=5, passed=True),
        Gate(expression="b > 1", comparison="0.5 > 1", held=2, rounds=5, passed=False),
    ]
    regressions = [
        Regression(figure=f"m{index}.throughput", before=100.0, now=80.0 - index, change=-0.2 - index / 100) for index in range(7)
    ]
    with pytest.raises(GateError) as raised:
        require_passed(replace(report, gates=gates, regressions=regressions))
    message = raised.value.message
    assert "1 of 2 gates failed: b > 1 (0.5 > 1, in 2 of 5 rounds)" in message
    assert "7 figures are worse than the baseline allows: m6.throughput went from 100 to 74 (-26.0%)" in message
    assert message.endswith("and 2 more")
