"""The report as data: its figures, and its way to disk and back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gates import check_gate
from benchmarks.report import OLDEST_VERSION, SCHEMA_VERSION, Report
from benchmarks.report_file import read_report, write_report
from benchmarks.samples import to_samples, to_spans
from benchmarks.speed import as_spans
from serving.errors import DataError
from tests.helpers import made_up


@pytest.fixture(scope="module")
def report() -> Report:
    return made_up.report()


def test_figures_have_the_names_that_gates_use(report: Report) -> None:
    figures = report.figures()
    speeds = dict(report.speeds())
    for name, speed in speeds.items():
        assert figures[f"{name}.throughput"] == speed.throughput and figures[f"{name}.p99_ms"] == speed.p99_ms
    expected = {
        "pytorch.fp32.throughput": speeds["pytorch.fp32.b32"].throughput, "pytorch.fp32.p50_ms": speeds["pytorch.fp32.b1"].p50_ms,
        "pytorch.fp32.throughput_low": speeds["pytorch.fp32.b32"].throughput_low, "pytorch.fp32.accuracy": 0.839,
        "onnx.int8.size_mib": 22.0, "compiled.fp32.first_answer_seconds": 31.0, "onnx.int8.max_logit_difference": 0.68,
        "served.int8.c16.executed_batch": 1.0, "served.int8.c16.model.cost_us": 2700.0, "served.int8.c16.split.network": 240.0,
        "served.int8.accuracy": 0.832, "served.int8.metric_drop": pytest.approx(0.007), "served.int8.pss_mib": 346.0,
        "served.int8.load80.calls": speeds["served.int8.load80"].calls,
    }  # fmt: skip
    assert {name: figures.get(name) for name in expected} == expected
    assert not any("gpu" in name for name in figures), "what was not measured is no figure"
    assert "pytorch.fp32.metric_drop" not in figures
    for name in figures:
        assert check_gate(f"{name} >= {figures[name]!r}", [figures]).passed, "every figure can stand in a gate"


def test_lengths_made_alike_are_never_the_best_on_real_rows(report: Report) -> None:
    model = next(model for model in report.in_process if model.name == "onnx.int8")
    short = model.arrangements["p1t2l16"].speed
    assert short.throughput > model.best.speed.throughput
    assert (model.best.name, model.quickest.name) == ("p1t2b32", "p1t2")


def test_every_round_has_all_figures_its_own_where_they_differ(report: Report) -> None:
    figures, rounds = report.figures(), report.figures_by_round()
    assert [set(found) for found in rounds] == [set(figures)] * made_up.ROUNDS
    assert len({found["served.int8.c16.throughput"] for found in rounds}) == made_up.ROUNDS
    assert [found["served.int8.accuracy"] for found in rounds] == [0.832] * made_up.ROUNDS
    assert [check_gate(gate.expression, rounds).passed for gate in report.gates] == [gate.passed for gate in report.gates]


def test_a_report_survives_being_written_and_read(report: Report, tmp_path: Path) -> None:
    spans = as_spans([(1_000_000, 1_005_000), (1_007_000, 1_009_000)])
    report = replace(report, samples=to_samples({"served.int8.c16.r1": spans}))
    write_report(tmp_path, report)
    found = read_report(tmp_path / "report.json")
    assert found == report
    assert found.samples == {"served.int8.c16.r1": {"start_us": [0.0, 7.0], "took_us": [5.0, 2.0]}}
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["schema_version"] == SCHEMA_VERSION and content["figures"] == report.figures()


def test_samples_of_one_clock_stay_on_it() -> None:
    first, second = as_spans([(10_000, 15_000), (17_000, 19_100)]), as_spans([(40_000, 41_000)])
    found = to_samples({"onnx.fp32.p1t1.r1.0": first, "onnx.fp32.p1t1.r1.1": second, "served.fp32.c1.r1": first})
    assert found["onnx.fp32.p1t1.r1.0"] == {"start_us": [0.0, 7.0], "took_us": [5.0, 2.1]} == found["served.fp32.c1.r1"]
    assert to_spans(found["onnx.fp32.p1t1.r1.1"]).tolist() == [[30_000, 31_000]]


def test_a_report_without_a_server_survives_too(report: Report, tmp_path: Path) -> None:
    alone = replace(report, served=None)
    write_report(tmp_path, alone)
    assert read_report(tmp_path) == alone


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "\udcff", '{"schema_version": 1, "figures": {}}', f'{{"schema_version": {SCHEMA_VERSION}}}']
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"is not a (whole )?benchmark report"):
        read_report(path)
    with pytest.raises(DataError, match="no report at"):
        read_report(tmp_path / "absent.json")


def test_a_report_with_a_field_missing_or_of_another_kind_is_refused_by_its_name(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path, report)
    path = tmp_path / "report.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["served"]["loads"][0]["speed"]["throughput"] = "fast"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"served\.loads\.0\.speed\.throughput"):
        read_report(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("in_process", 0, "arrangements"), {}),
        (("in_process", 0, "arrangements", "b1", "batch"), 0),
        (("in_process", 0, "size_mib"), "86.7"),
        (("served", "quality", "agreement"), "0.5"),
        (("served", "quality", "agreement"), True),
        (("served", "quality", "agreement"), 1.5),
        (("served", "quality", "rows"), -5),
        (("served", "loads", 0, "speed", "p50_ms"), -1.0),
        (("served", "colour"), "red"),
        (("settings", "rows"), -5),
        (("settings", "rows"), 5.5),
        (("settings", "colour"), "red"),
        (("environment", "colour"), "red"),
        (("gates", 0, "rounds"), 0),
        (("rounds",), []),
        (("samples",), None),
        (("samples", "onnx.int8.p1t2.r1"), {"start_us": [0.0]}),
        (("colour",), "red"),
    ],
    ids=str,
)
def test_a_damaged_report_is_refused_in_one_line(
    report: Report, tmp_path: Path, place: tuple[str | int, ...], value: object
) -> None:
    write_report(tmp_path, report)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    *parents, last = place
    inner = content
    for key in parents:
        inner = inner[key]
    inner[last] = value
    (tmp_path / "report.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"report: {'.'.join(map(str, place))}")) as refused:
        read_report(tmp_path)
    assert "\n" not in refused.value.message and "report.json" in refused.value.message
    assert "run tritonize benchmark again" in (refused.value.hint or "")


@pytest.mark.parametrize("version", range(OLDEST_VERSION, SCHEMA_VERSION + 1))
def test_a_report_without_samples_is_refused(report: Report, tmp_path: Path, version: int) -> None:
    """All versions that can be read have samples."""
    write_report(tmp_path, report)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    del content["samples"]
    (tmp_path / "report.json").write_text(json.dumps(content | {"schema_version": version}), encoding="utf-8")
    with pytest.raises(DataError, match="samples"):
        read_report(tmp_path)


def test_arrangements_on_rows_of_one_length_alone_are_refused(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path, report)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    arrangements = content["in_process"][0]["arrangements"]
    content["in_process"][0]["arrangements"] = {"b1l16": arrangements["b1l16"]}
    (tmp_path / "report.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"in_process\.0\.arrangements.*rows as they are"):
        read_report(tmp_path)


def test_a_report_of_the_previous_schema_version_is_read(report: Report, tmp_path: Path) -> None:
    baseline = made_up.compared(replace(made_up.comparison("served.int8.c16.throughput"), against_reference=-0.1))
    report = replace(report, baseline=baseline)
    write_report(tmp_path, report)
    path = tmp_path / "report.json"
    text = (
        path.read_text(encoding="utf-8").replace('"changed_answers"', '"moved"').replace("against_reference", "against_yardstick")
    )
    path.write_text(json.dumps(json.loads(text) | {"schema_version": 3}), encoding="utf-8")
    assert read_report(path) == report


def test_a_figure_that_is_not_finite_is_refused(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path, report)
    path = tmp_path / "report.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["rounds"][0]["served.int8.c16.throughput"] = float("nan")
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"rounds\.0\.served"):
        read_report(path)
