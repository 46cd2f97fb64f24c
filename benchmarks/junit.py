"""Gates and comparisons as JUnit XML, which every CI system shows test by test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.report import Report
from benchmarks.verdicts import BenchmarkGate, ReportComparison

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


def write_junit(path: Path, report: Report) -> None:
    """Write a report's gates, and its figures beside the baseline's, a suite each. A failure says by how much."""
    root = ElementTree.Element("testsuites", name=_clean(f"benchmark of {report.name}"))
    if report.gates:
        _gates(root, report.name, report.created, report.gates)
    if report.baseline is not None:
        _figures(root, report.name, report.baseline)
    _write(path, root)


def write_comparison(path: Path, compared: ReportComparison) -> None:
    """Write the figures of two reports that were compared."""
    root = ElementTree.Element("testsuites", name="comparison of benchmarks")
    _figures(root, "compare", compared)
    _write(path, root)


def _gates(root: ElementTree.Element, name: str, created: str, gates: Sequence[BenchmarkGate]) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name="gates", timestamp=created.partition("+")[0])
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(f"{name}.gates"), name=_clean(gate.expression))
        if gate.passed:
            ElementTree.SubElement(case, "system-out").text = _clean(str(gate))
        else:
            _tell(case, "failure", str(gate), f"{gate.expression}: {gate}")
    _count(suite)


def _figures(root: ElementTree.Element, name: str, compared: ReportComparison) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name="baseline")
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in [("before", compared.before), ("now", compared.now), *(("note", note) for note in compared.notes)]:
        ElementTree.SubElement(properties, "property", name=key, value=_clean(value))
    for one in compared.figures:
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(f"{name}.baseline"), name=_clean(one.figure))
        if one.verdict == "worse":
            _tell(case, "failure", "; ".join(filter(None, [one.told, one.limits])), str(one))
        elif one.verdict == "not compared":
            ElementTree.SubElement(case, "skipped", message=_clean(one.why))
    _count(suite)


def _tell(case: ElementTree.Element, kind: str, message: str, text: str) -> None:
    ElementTree.SubElement(case, kind, message=_clean(message), type="GateError").text = _clean(text)


def _count(suite: ElementTree.Element) -> None:
    for key, found in (("tests", "testcase"), ("failures", "testcase/failure"), ("skipped", "testcase/skipped")):
        suite.set(key, str(len(suite.findall(found))))
    suite.set("errors", "0")


def _clean(text: str) -> str:
    return _NO_XML.sub("", text)


def _write(path: Path, root: ElementTree.Element) -> None:
    ElementTree.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
