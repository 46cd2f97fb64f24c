"""What a run makes of what was measured: no gate and no baseline takes another's verdict, or the report, away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run
from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.inputs import BenchmarkRows
from benchmarks.report import Report
from benchmarks.report_file import read_report, write_report
from benchmarks.row_checksums import timed_checksums
from serving.errors import DataError, GateError
from tests.benchmarks.test_junit import suites
from tests.helpers import drifting

REPORT = drifting.small()
GATES = ("served.int8.c16.nothing > 1", "served.int8.c16.throughput / (1 - 1) > 1", "served.int8.accuracy > 0.5")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Report], Any]:
    """Options of a run that is compared with a report, and measures :data:`REPORT`."""
    monkeypatch.setattr(run, "_measured", lambda _options: REPORT)

    def options(baseline: Report) -> Any:
        (tmp_path / "baseline").mkdir()
        write_report(tmp_path / "baseline", baseline)
        return BenchmarkOptions(name="words", output=tmp_path / "report", junit=tmp_path / "junit.xml",
                                baseline=tmp_path / "baseline", gates=GATES, exported=False, in_process=True)  # fmt: skip

    return options


def test_a_gate_that_cannot_be_checked_fails_alone(measured: Callable[[Report], Any], tmp_path: Path) -> None:
    report = run.run_benchmark(measured(REPORT))
    assert [(gate.passed, gate.why.partition(";")[0]) for gate in report.gates] == [
        (False, "no figure is called served.int8.c16.nothing"), (False, "it divides by zero"), (True, "")]  # fmt: skip
    assert report.baseline is not None and report.baseline.of("same")
    assert read_report(tmp_path / "report" / "report.json") == report
    assert "2 of 3 gates failed, 1 held. Against the baseline: " in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    found = suites(tmp_path / "junit.xml")
    assert found["gates"].attrib["failures"] == "2" and int(found["baseline"].attrib["tests"]) > 50
    with pytest.raises(GateError, match=r"(?m)^2 of 3 gates failed: .*no figure is called .*it divides by zero$"):
        run.require_passed(report)


def test_a_baseline_that_nothing_can_be_held_against_takes_no_gate_away(measured: Callable[[Report], Any], tmp_path: Path) -> None:
    options = measured(replace(REPORT, in_process=[], served=None))
    with pytest.raises(DataError, match="no figure in common") as raised:
        run.run_benchmark(options)
    assert raised.value.hint.endswith("report.md")
    assert len(read_report(tmp_path / "report" / "report.json").gates) == 3
    assert suites(tmp_path / "junit.xml")["gates"].attrib["failures"] == "2"


def test_the_rows_that_were_timed_are_told_by_length() -> None:
    one = timed_checksums(BenchmarkRows(timed={None: [["a"], ["b"]], 16: [["c"]]}, labelled=[], references=[]))
    other = timed_checksums(BenchmarkRows(timed={None: [["b"], ["a"]], 16: [["c"]]}, labelled=[], references=[]))
    assert list(one) == ["as they are", "16"]
    assert one["as they are"] != other["as they are"], "in another order rounds get others"
    assert one["16"] == other["16"]
