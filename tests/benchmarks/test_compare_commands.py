"""``tritonize compare``: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import OLDEST_VERSION, SCHEMA_VERSION
from benchmarks.report_file import write_report
from export.cli import main
from tests.benchmarks.test_junit import suites
from tests.helpers import drifting


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``before``; ``slow``, whose server has a third of the throughput; ``fast``, whose has three times as much."""
    folder = tmp_path_factory.mktemp("reports")
    report = drifting.small()
    report = replace(report, settings=replace(report.settings, rows_sha256="of the rows"))
    for name, factor in (("before", 1.0), ("slow", 1 / 3), ("fast", 3.0)):
        (folder / name).mkdir()
        rounds = [{key: value * factor if key.startswith("served") and key.endswith("throughput") else value
                   for key, value in own.items()} for own in report.rounds]  # fmt: skip
        write_report(folder / name, drifting.with_rounds(report, rounds))
    return folder


def test_the_same_is_0(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folders / "before"), str(folders / "before" / "report.json")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("before: reviews of 2031-02-03") and out.splitlines()[-1] == "120 same, 30 not compared"
    assert "c16" not in out, "what stayed the same is not listed"
    assert main(["compare", str(folders / "before"), str(folders / "before"), "--all"]) == 0
    assert ["same", "served.int8.c16.throughput"] in [line.split()[:2] for line in capsys.readouterr().out.splitlines()]


def test_worse_is_1_and_named(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folders / "before"), str(folders / "slow")]) == 1
    out, err = capsys.readouterr()
    assert "worse  served.int8.*.throughput" in out and "-66.7%" in out
    assert err.startswith("error: 9 figures are worse than the baseline allows: served.int8.*.throughput went from ")
    assert main(["compare", str(folders / "before"), str(folders / "slow"), "--max-regression", "90%"]) == 0


def test_better_is_0_and_the_other_way_round_it_is_worse(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folders / "before"), str(folders / "fast")]) == 0
    assert "better  served.int8.*.throughput" in capsys.readouterr().out
    assert main(["compare", str(folders / "fast"), str(folders / "before")]) == 1


def test_it_is_written_as_json_markdown_and_junit(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--markdown", str(tmp_path / "compare.md"), "--junit", str(tmp_path / "compare.xml")]
    assert main(["compare", str(folders / "before"), str(folders / "slow"), "--json", *files]) == 1
    told = json.loads(capsys.readouterr().out)
    worse = [one["figure"] for one in told["figures"] if one["verdict"] == "worse"]
    assert len(worse) == 9
    markdown = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert "| **worse** | `served.int8.*.throughput` |" in markdown and "9 worse" in markdown
    assert suites(tmp_path / "compare.xml")["baseline"].attrib["failures"] == "9"


HOSTILE = "a | b\n# c `d` <script>alert(1)</script> @e [f](https://g.example)"


def test_whatever_a_report_holds_is_text_in_markdown(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((folders / "slow" / "report.json").read_text(encoding="utf-8"))
    environment = content["environment"] | {"commit": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    served = content["served"] | {"precision": HOSTILE}
    rounds = [{key.replace("served.int8", f"served.{HOSTILE}"): value for key, value in own.items()} for own in content["rounds"]]
    for name in ("one", "two"):
        changes = {"name": HOSTILE, "created": HOSTILE, "environment": environment | {"cpu": name}, "served": served}
        (tmp_path / name).write_text(json.dumps(content | changes | {"rounds": rounds}), encoding="utf-8")
    files = [str(tmp_path / "one"), str(tmp_path / "two"), "--all", "--markdown", str(tmp_path / "compare.md")]
    assert main(["compare", *files]) == 0
    capsys.readouterr()
    markdown = (tmp_path / "compare.md").read_text(encoding="utf-8")
    lines = markdown.splitlines()
    assert [line for line in lines if line.startswith("#")] == ["# Comparison"]
    assert not [part for part in ("<script", "https://", "@e", "[f]") if part in markdown.replace("\\[", "")]
    columns = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert columns == {8}


def test_what_is_no_report_is_wrong_usage(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(folders / "before")
    content = json.loads((folders / "before" / "report.json").read_text(encoding="utf-8"))
    broken = {
        "text": "no JSON",
        "list": "[]",
        "old": json.dumps(content | {"schema_version": OLDEST_VERSION - 1}),
        "newer": json.dumps(content | {"schema_version": SCHEMA_VERSION + 1}),
        "types": json.dumps(content | {"rounds": {"served.int8.c16.throughput": "much"}}),
        "half": json.dumps({key: value for key, value in content.items() if key != "in_process"}),
    }
    for name, text in broken.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "absent": "does not exist", "text": "is not a benchmark report", "list": "of schema version", "old": "of schema version",
        "newer": f"this tritonize reads up to {SCHEMA_VERSION}",
        "types": "is not a whole benchmark report: rounds", "half": "in_process", "empty": "no report at",
    }.items():  # fmt: skip
        for arguments, which in (([good, str(tmp_path / name)], "NOW"), ([str(tmp_path / name), good], "BEFORE")):
            assert main(["compare", *arguments]) == 2, name
            err = capsys.readouterr().err
            assert message in err and which in err and "Traceback" not in err, name


@pytest.mark.parametrize("arguments", [[], ["one"], ["--max-regression", "ten"], ["--max-quality-drop", "-1"], ["--junit", "."]])
def test_wrong_options_are_wrong_usage(folders: Path, arguments: list[str]) -> None:
    both = [] if arguments in ([], ["one"]) else [str(folders / "before")] * 2
    assert main(["compare", *both, *arguments]) == 2


@pytest.mark.parametrize("option", ["--markdown", "--junit"])
def test_a_full_disk_is_one_line_that_names_the_file(folders: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folders / "before"), str(folders / "before"), option, "/dev/full"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write /dev/full: No space left on device (free space") and error.count("\n") == 1
