"""JUnit XML: well-formed whatever the figures are called, counted, and a failure says by how much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.benchmark_options import Tolerances
from benchmarks.comparing.compare import compare
from benchmarks.gates import check_gate
from benchmarks.junit import write_comparison, write_junit
from benchmarks.report import Report
from tests.helpers import drifting, made_up

STRANGE = "a < b & \"c\" > 'd' \x00\x1b\x0b\ud800\ufffe ★ 😀"


@pytest.fixture(scope="module")
def report() -> Report:
    """Three gates of which one failed, and a baseline that the server was three times as fast in."""
    whole = drifting.small()
    whole = replace(whole, settings=replace(whole.settings, rows_sha256="of the rows"))
    rounds = [{name: value / 3 if name.startswith("served") and name.endswith("throughput") else value
               for name, value in own.items()} for own in whole.rounds]  # fmt: skip
    now = drifting.with_rounds(whole, rounds)
    return replace(now, baseline=compare(whole, now, Tolerances()))


def suites(path: Path) -> dict[str, ElementTree.Element]:
    root = ElementTree.parse(path).getroot()  # noqa: S314 - written a line above
    assert root.tag == "testsuites"
    return {suite.attrib["name"]: suite for suite in root}


def test_gates_and_figures_are_suites_of_tests(report: Report, tmp_path: Path) -> None:
    write_junit(tmp_path / "new" / "junit.xml", report)
    found = suites(tmp_path / "new" / "junit.xml")
    assert list(found) == ["gates", "baseline"]
    assert {key: found["gates"].attrib[key] for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3", "failures": "1", "errors": "0", "skipped": "0"}  # fmt: skip
    assert found["gates"].attrib["timestamp"] == "2031-02-03T04:05:06"
    assert report.baseline is not None
    assert found["baseline"].attrib["tests"] == str(len(report.baseline.figures))
    assert found["baseline"].attrib["failures"] == str(len(report.baseline.of("worse"))) != "0"
    names = [case.attrib["name"] for case in found["baseline"].iter("testcase")]
    assert "served.int8.c16.throughput" in names and len(names) == len(set(names))
    assert {case.attrib["classname"] for case in found["gates"].iter("testcase")} == {"reviews.gates"}


def test_a_failure_says_by_how_much(report: Report, tmp_path: Path) -> None:
    gate = check_gate("served.int8.c16.throughput >= 1e6", report.figures_by_round())
    write_junit(tmp_path / "junit.xml", replace(report, gates=[gate]))
    found = suites(tmp_path / "junit.xml")
    failure = found["gates"].find("testcase/failure")
    assert failure is not None and failure.attrib["message"].endswith("in 0 of 5 rounds, 100 % short")
    assert failure.text == f"{gate.expression}: {gate}"
    failures = {case.attrib["name"]: case.find("failure") for case in found["baseline"].iter("testcase")}
    worse = failures["served.int8.c16.throughput"]
    assert worse is not None and worse.attrib["message"].startswith("-66.7%, -66.7% relative to the reference; ")
    assert failures["served.int8.c16.p50_ms"] is None


def test_a_gate_that_could_not_be_checked_is_a_failure_that_says_why(report: Report, tmp_path: Path) -> None:
    gates = [check_gate(expression, report.figures_by_round()) for expression in ("zzz > 1", "served.int8.accuracy > 0")]
    write_junit(tmp_path / "junit.xml", replace(report, gates=gates))
    found = suites(tmp_path / "junit.xml")
    assert (found["gates"].attrib["failures"], found["gates"].attrib["tests"]) == ("1", "2") and "baseline" in found
    failure = found["gates"].find("testcase/failure")
    assert failure is not None and failure.attrib["message"] == "no figure is called zzz"


def test_what_was_not_compared_is_skipped_and_says_why(report: Report, tmp_path: Path) -> None:
    elsewhere = replace(report, environment=replace(report.environment, cores=4))
    write_comparison(tmp_path / "junit.xml", compare(report, elsewhere, Tolerances()))
    suite = suites(tmp_path / "junit.xml")["baseline"]
    skipped = suite.findall("testcase/skipped")
    assert {one.attrib["message"] for one in skipped} == {"another machine"} and suite.attrib["skipped"] == str(len(skipped))
    notes = [one.attrib["value"] for one in suite.iter("property") if one.attrib["name"] == "note"]
    assert notes[0].startswith("another machine: cores 2 → 4")


def test_whatever_a_gate_holds_is_well_formed_xml(report: Report, tmp_path: Path) -> None:
    gate = replace(report.gates[1], expression=STRANGE)
    write_junit(tmp_path / "junit.xml", replace(report, name=STRANGE, gates=[gate], baseline=None))
    (case,) = suites(tmp_path / "junit.xml")["gates"].iter("testcase")
    assert case.attrib["name"] == "a < b & \"c\" > 'd'  ★ 😀"


def test_a_report_without_gates_or_baseline_is_an_empty_file_of_tests(tmp_path: Path) -> None:
    write_junit(tmp_path / "junit.xml", made_up.report(gates=[]))
    assert suites(tmp_path / "junit.xml") == {}
