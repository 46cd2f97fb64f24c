"""Gates and comparisons as JUnit XML, which every CI system shows test by test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

from benchmarks.report import Report
from benchmarks.verdicts import ReportComparison
from serving.writing import writing

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped; junitparser writes them all the same."""


def write_junit(path: Path, report: Report) -> None:
    """Write a report's gates and its comparison with the baseline, one suite each. A failure says by how much."""
    suites = [_gates(report)] if report.gates else []
    if report.baseline is not None:
        suites.append(_figures(report.name, report.baseline))
    _write(path, f"benchmark of {report.name}", suites)


def write_comparison(path: Path, compared: ReportComparison) -> None:
    """Write the comparison of two reports."""
    _write(path, "comparison of benchmarks", [_figures("compare", compared)])


def _gates(report: Report) -> TestSuite:
    suite = TestSuite("gates")
    suite.timestamp = report.created.partition("+")[0]
    for gate in report.gates:
        case = TestCase(_clean(gate.expression), _clean(f"{report.name}.gates"))
        if gate.passed:
            case.system_out = _clean(str(gate))
        else:
            case.result = [_failure(str(gate), f"{gate.expression}: {gate}")]
        suite.add_testcase(case)
    return suite


def _figures(name: str, compared: ReportComparison) -> TestSuite:
    suite = TestSuite("baseline")
    for key, value in [("before", compared.before), ("now", compared.now), *(("note", note) for note in compared.notes)]:
        suite.add_property(key, _clean(value))
    for one in compared.figures:
        case = TestCase(_clean(one.figure), _clean(f"{name}.baseline"))
        if one.verdict == "worse":
            case.result = [_failure("; ".join(filter(None, [one.description, one.limits])), str(one))]
        elif one.verdict == "not compared":
            case.result = [Skipped(_clean(one.why))]
        suite.add_testcase(case)
    return suite


def _failure(message: str, text: str) -> Failure:
    failure = Failure(_clean(message), "GateError")
    failure.text = _clean(text)
    return failure


def _clean(text: str) -> str:
    return _NO_XML.sub("", text)


def _write(path: Path, name: str, suites: Sequence[TestSuite]) -> None:
    xml = JUnitXml(_clean(name))
    for suite in suites:
        xml.add_testsuite(suite)
    xml.update_statistics()  # type: ignore[no-untyped-call]
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        xml.write(str(path), pretty=True)
