"""The workflows: what they run exists, nobody's text becomes shell, every action is pinned, every job ends."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from export.cli import tritonize

PROJECT = Path(__file__).parents[1]
FILES = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
VARIABLES = {"RECIPE", "NAME", "GATE", "MAX_REGRESSION", "OUTPUT", "JUNIT", "DEVICE", "PYTEST", "BASELINE"}
OUTSIDE = re.compile(r"\$\{\{")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def jobs(path: Path) -> list[dict[str, Any]]:
    return list(read(path)["jobs"].values())


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path) for step in job["steps"]]


def lines(path: Path) -> list[str]:
    return [line.strip() for step in steps(path) for line in step.get("run", "").splitlines()]


def test_both_are_there() -> None:
    assert [path.stem for path in FILES] == ["benchmark", "ci"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_run_what_there_is(path: Path) -> None:
    context = click.Context(tritonize)
    targets = {word for line in lines(path) if line.startswith("make ") for word in line.split()[1:]}
    assert targets <= TARGETS and targets
    for line in lines(path):
        words = shlex.split(line) if "tritonize " in line else []
        if not words or words[1].startswith("-"):
            continue
        command = tritonize.get_command(context, words[1])
        assert command is not None, line
        assert {word for word in words if word.startswith("--")} <= {flag for option in command.params for flag in option.opts}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_text_from_outside_is_run(path: Path) -> None:
    for step in steps(path):
        assert not OUTSIDE.search(step.get("run", "")), "an expression in a script is pasted into it: hand it over in env"
        assert "github-script" not in step.get("uses", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_actions_are_pinned_and_jobs_end_with_few_rights(path: Path) -> None:
    content = read(path)
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), step["uses"]
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
    assert all(job["timeout-minutes"] <= 180 for job in jobs(path))
    assert set(content["permissions"].values()) == {"read"}
    assert "cancel-in-progress" in content["concurrency"]
    assert "pull_request_target" not in content[True], "PyYAML reads the key on as true"


def test_make_knows_the_variables_that_are_set() -> None:
    set_here = {key for path in FILES for holder in (*jobs(path), *steps(path)) for key in holder.get("env", {})}
    set_here |= {name for path in FILES for line in lines(path) for name in re.findall(r'"(\w+)=.*GITHUB_ENV', line)}
    own = {"GH_TOKEN", "PIP_EXTRA_INDEX_URL"}
    assert set_here - own == VARIABLES
    for name in VARIABLES:
        assert re.search(rf"\$\({name}\)|,{name}\)|\$\${name}\b", MAKEFILE), name


def test_the_benchmark_leaves_its_report_whatever_happens() -> None:
    found = steps(PROJECT / ".github" / "workflows" / "benchmark.yml")
    at = next(index for index, step in enumerate(found) if step.get("run") == "make benchmark")
    rest = found[at + 1 :]
    assert all("always()" in step["if"] for step in rest)
    assert any(step.get("run") == "make stop" for step in rest)
    assert any("GITHUB_STEP_SUMMARY" in step.get("run", "") for step in rest)
    (job,) = jobs(PROJECT / ".github" / "workflows" / "benchmark.yml")
    uploaded = {step["with"]["path"] for step in rest if step.get("uses", "").startswith("actions/upload-artifact")}
    assert uploaded == {job["env"]["OUTPUT"], job["env"]["JUNIT"]}
    assert job["runs-on"] == ["self-hosted", "gpu"]


def test_what_make_is_given_as_a_gate_is_no_shell(tmp_path: Path) -> None:
    gate = f'$(shell touch {tmp_path}/make) > "; touch {tmp_path}/shell #'
    command = ["make", "-n", "-o", "setup", "benchmark", "NAME=x"]
    environment = {"PATH": "/usr/bin:/bin", "GATE": gate}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith('--gate "$GATE"')
    assert not list(tmp_path.iterdir())
