"""The workflows: what they run exists, nobody's text becomes shell, actions are pinned, every job ends."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from export.cli import tritonize
from serving.oci.debian import INSTALL

PROJECT = Path(__file__).parents[1]
FILES = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
VARIABLES = {"RECIPE", "NAME", "GATE", "MAX_REGRESSION", "OUTPUT", "JUNIT", "DEVICE", "PYTEST", "BASELINE", "REPOSITORY"}
GIVEN = re.findall(r"\w+", re.sub(r"\\\n", "", MAKEFILE).partition("GIVEN")[2].partition("\n")[0])
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


def test_all_are_there() -> None:
    assert [path.stem for path in FILES] == ["benchmark", "ci", "endurance", "image", "release"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_run_what_there_is(path: Path) -> None:
    context = click.Context(tritonize)
    targets = {word for line in lines(path) if line.startswith("make ") for word in line.split()[1:]}
    assert targets <= TARGETS and (targets or path.stem == "image")
    for line in lines(path):
        words = shlex.split(line) if "tritonize " in line else []
        if words[:2] == ["docker", "compose"]:
            service = words.index("--entrypoint") + 2
            assert words[service] in read(PROJECT / "serving" / "docker" / "compose.yaml")["services"]
            words = words[service:]
        if not words or words[1].startswith("-"):
            continue
        command = tritonize.get_command(context, words[1])
        assert command is not None, line
        known = {flag for option in command.params for flag in option.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_text_from_outside_is_run(path: Path) -> None:
    for step in steps(path):
        assert not OUTSIDE.search(step.get("run", "")), "an expression in a script is pasted into it: hand it over in env"
        assert "github-script" not in step.get("uses", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_and_jobs_end_with_few_rights(path: Path) -> None:
    content = read(path)
    used = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert len(used) == len([step for step in steps(path) if "uses" in step])
    for action in used:
        pinned = re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)
        assert pinned, f"{action}: a tag can be moved to another commit"
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
    assert all(job["timeout-minutes"] <= 180 for job in jobs(path))
    assert set(content["permissions"].values()) == {"read"}
    assert "cancel-in-progress" in content["concurrency"]
    assert "pull_request_target" not in content[True], "PyYAML reads the key on as true"


def test_the_audit_counts_what_it_could_not_look_up_and_covers_both_environments() -> None:
    audit = read(PROJECT / ".github" / "workflows" / "ci.yml")["jobs"]["audit"]
    (script,) = [step["run"] for step in audit["steps"] if "pip-audit --" in step.get("run", "")]
    assert "--strict" in script, "pip-audit passes without it when it has looked up nothing"
    assert {path.stem for path in (PROJECT / ".constraints").iterdir()} == set(re.findall(r"in (.*);", script)[0].split())


def test_the_image_is_built_and_looked_at_when_what_it_installs_changes() -> None:
    content = read(PROJECT / ".github" / "workflows" / "image.yml")
    (job,) = content["jobs"].values()
    assert (PROJECT / job["env"]["COMPOSE_FILE"]).is_file()
    scripts = [step["run"] for step in job["steps"] if "run" in step]
    assert "docker compose build triton" in scripts
    assert {script.partition(" triton ")[2] for script in scripts if " run " in script} == {"serve --help", "doctor"}
    paths = content[True]["push"]["paths"]
    assert paths == content[True]["pull_request"]["paths"], "PyYAML reads the key on as true"
    assert all((PROJECT / path.removesuffix("/**")).exists() for path in paths)
    assert {"pyproject.toml", ".constraints/triton.txt", "serving/**"} <= set(paths)


def test_what_every_change_leaves_out_runs_weekly() -> None:
    content = read(PROJECT / ".github" / "workflows" / "endurance.yml")
    (weekly,) = content[True]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* \d", weekly["cron"])
    assert "make endurance" in lines(PROJECT / ".github" / "workflows" / "endurance.yml")
    assert "make endurance" not in lines(PROJECT / ".github" / "workflows" / "ci.yml")


def test_the_release_runs_the_script_and_removes_the_key() -> None:
    found = steps(PROJECT / ".github" / "workflows" / "release.yml")
    (release,) = [step for step in found if "SIGNING_KEY" in step.get("env", {})]
    assert release["run"].splitlines()[-1] == "serving/deploy/release.sh"
    before = [step.get("run", "") for step in found[: found.index(release)]]
    needed = INSTALL.partition("apt-get install ")[2]
    assert any("apt-get install" in script and needed in script for script in before), "the image needs them"
    assert release["run"].startswith("trap 'rm -f \"$KEY\"' EXIT"), "the key does not stay on the machine"
    script = (PROJECT / "serving" / "deploy" / "release.sh").read_text(encoding="utf-8")
    assert all(f"${{{name}:" in script for name in release["env"].keys() - {"SIGNING_KEY"})


def test_make_knows_the_variables_that_are_set() -> None:
    set_here = {key for path in FILES for holder in (*jobs(path), *steps(path)) for key in holder.get("env", {})}
    set_here |= {name for path in FILES for line in lines(path) for name in re.findall(r'"(\w+)=.*GITHUB_ENV', line)}
    own = {"GH_TOKEN", "PIP_EXTRA_INDEX_URL", "SIGNING_KEY", "KEY", "VERIFY_KEY", "IMAGE", "COMPOSE_FILE", "QUALITY_GATE"}
    assert set_here - own == VARIABLES
    for name in VARIABLES:
        assert re.search(rf"\$\({name}\)|,{name}\)|\$\${name}\b", MAKEFILE), name
        assert name in GIVEN, "what is set from outside must not be expanded"


def test_the_benchmark_leaves_its_report_whatever_happens() -> None:
    found = steps(PROJECT / ".github" / "workflows" / "benchmark.yml")
    at = next(index for index, step in enumerate(found) if step.get("run") == "make benchmark")
    rest = found[at + 1 :]
    assert all("always()" in step["if"] for step in rest)
    (stop,) = [step for step in rest if step.get("run", "").startswith(".venv/bin/tritonize stop")]
    serve = next(step for step in found if step.get("run", "").startswith(".venv/bin/tritonize serve"))
    assert f"steps.{serve['id']}.outcome" in stop["if"], "a server that was never started is not stopped"
    assert not [step for step in rest if step.get("run", "").startswith("make")], "make reads what may have been refused"
    assert any("GITHUB_STEP_SUMMARY" in step.get("run", "") for step in rest)
    (job,) = jobs(PROJECT / ".github" / "workflows" / "benchmark.yml")
    uploaded = {step["with"]["path"] for step in rest if step.get("uses", "").startswith("actions/upload-artifact")}
    assert uploaded == {job["env"]["OUTPUT"], job["env"]["JUNIT"]}
    assert job["runs-on"] == ["self-hosted", "gpu"]


def test_a_name_that_was_refused_is_used_nowhere() -> None:
    found = steps(PROJECT / ".github" / "workflows" / "benchmark.yml")
    at = next(index for index, step in enumerate(found) if step.get("id") == "names")
    assert not [step for step in found[:at] if "make" in step.get("run", "")]
    for step in found[at + 1 :]:
        if "always()" in step.get("if", ""):
            assert "$NAME" not in step.get("run", "") and "$RECIPE" not in step.get("run", "")
            assert "env.NAME" not in str(step.get("with", "")) or "steps.names.outcome == 'success'" in step["if"]


def test_what_is_served_is_of_this_run_alone() -> None:
    (job,) = jobs(PROJECT / ".github" / "workflows" / "benchmark.yml")
    own = job["env"]["REPOSITORY"]
    scripts = [step.get("run", "") for step in job["steps"]]
    first = next(index for index, script in enumerate(scripts) if script)
    assert own != "model_repository" and '"$REPOSITORY"' in scripts[first] and scripts[first].startswith("rm -rf ")
    assert any(script.startswith(".venv/bin/tritonize serve") and '--repository "$REPOSITORY"' in script for script in scripts)


GH = """#!/bin/bash
if [ "$1" = run ]; then echo "$@" > downloaded; exit; fi
case "$2" in
  *actions/artifacts?name=report-reviews\\&*) jq -r "$4" < artifacts.json ;;
  *actions/runs/*) jq -r "$4" < "run-${2##*/}.json" ;;
  *) exit 1 ;;
esac
"""


def artifact(run: int, created: str, *, branch: str = "main", expired: bool = False, owner: int = 1) -> dict[str, Any]:
    of = {"id": run, "head_branch": branch, "repository_id": 1, "head_repository_id": owner}
    return {"expired": expired, "created_at": created, "workflow_run": of}


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq here")
@pytest.mark.parametrize(("passed", "taken"), [({3, 4, 5, 6, 7}, 4), ({3, 5, 6, 7}, 3), ({5, 6, 7}, None), (set(), None)])
def test_the_baseline_is_the_newest_run_of_main_that_passed_and_has_a_report(
    tmp_path: Path, passed: set[int], taken: int | None
) -> None:
    found = [
        artifact(3, "2031-01-03"),
        artifact(8, "2031-01-08"),
        artifact(4, "2031-01-04"),
        artifact(5, "2031-01-05", expired=True),
    ]
    found += [artifact(6, "2031-01-06", branch="other"), artifact(7, "2031-01-07", owner=2)]
    (tmp_path / "artifacts.json").write_text(json.dumps({"artifacts": found}), encoding="utf-8")
    for run in range(3, 9):
        path = ".github/workflows/other.yml" if run == 8 else ".github/workflows/benchmark.yml"
        told = {"path": path, "conclusion": "success" if run in passed | {8} else "failure"}
        (tmp_path / f"run-{run}.json").write_text(json.dumps(told), encoding="utf-8")
    stub = tmp_path / "bin" / "gh"
    stub.parent.mkdir()
    stub.write_text(GH, encoding="utf-8")
    stub.chmod(0o755)
    (script,) = [step["run"] for step in steps(FILES[0]) if "BASELINE=" in step.get("run", "")]
    environment = {"PATH": f"{stub.parent}:/usr/local/bin:/usr/bin:/bin", "NAME": "reviews", "GITHUB_REPOSITORY": "a/b"}
    environment |= {"GITHUB_ENV": str(tmp_path / "env")}
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True)
    expected = None if taken is None else f"run download {taken} --name report-reviews --dir baseline\n"
    downloaded = tmp_path / "downloaded"
    assert (downloaded.read_text() if downloaded.exists() else None) == expected
    assert (tmp_path / "env").exists() is (taken is not None)


TRITONIZE = """#!/bin/sh
for argument in "$@"; do printf '%s\\0' "$argument"; done >> "$ARGUMENTS"
"""
HOSTILE = "a'b\"c $(shell touch make) `touch back` $$(touch shell) ${x} '; touch quote #' \"; touch double #\\"


@pytest.mark.parametrize("target", ["finetune", "export", "package", "serve", "stop", "predict", "benchmark", "tune"])
@pytest.mark.parametrize("from_environment", [True, False])
def test_what_make_is_given_is_read_by_neither_make_nor_the_shell(tmp_path: Path, target: str, from_environment: bool) -> None:
    project, arguments = tmp_path / "project", tmp_path / "arguments"
    stub = project / ".venv" / "bin" / "tritonize"
    stub.parent.mkdir(parents=True)
    stub.write_text(TRITONIZE, encoding="utf-8")
    stub.chmod(0o755)
    (project / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    done_before = [part for name in ("setup", "finetune", "export", "package") if name != target for part in ("-o", name)]
    given = {name: f"{name} {HOSTILE}" for name in GIVEN if name not in ("PYTHON", "PYTEST")}
    environment = {"PATH": "/usr/bin:/bin", "ARGUMENTS": str(arguments)}
    on_line = [] if from_environment else [f"{name}={value}" for name, value in given.items()]
    environment |= given if from_environment else {}
    subprocess.run(["make", *done_before, target, *on_line], cwd=project, env=environment, check=True, capture_output=True)
    told = arguments.read_text(encoding="utf-8").split("\0")
    assert told[0] == target
    values = [value for value in told if HOSTILE in value]
    assert values and all(any(value.endswith(f"{name} {HOSTILE}") or name == "ARTIFACTS" for name in given) for value in values)
    if target == "benchmark":
        pairs = dict(zip(told[2::2], told[3::2], strict=False))
        for flag, name in {"gate": "GATE", "recipe": "RECIPE", "output": "OUTPUT", "max-regression": "MAX_REGRESSION"}.items():
            assert pairs[f"--{flag}"] == given[name]
        assert told[1] == given["NAME"]
    assert sorted(path.name for path in project.iterdir()) == [".venv", "Makefile"], "something was run"


@pytest.mark.parametrize("written", ['name = "tickets"', "name='tickets'  # the ensemble"])
def test_make_reads_the_name_and_the_ports_of_a_recipe(tmp_path: Path, written: str) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    (tmp_path / "own.toml").write_text(f"{written}\n[serve]\nhttp-port = 9000\n", encoding="utf-8")
    command = ["make", "--dry-run", "-o", "setup", "package", "serve", "predict", "stop", "RECIPE=own.toml"]
    shown = subprocess.run(command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, check=True, capture_output=True, text=True).stdout
    assert "--bundle 'artifacts/tickets/bundle'" in shown and "predict 'tickets'" in shown
    assert all(f"tritonize {command} --recipe 'own.toml'" in shown for command in ("serve", "stop"))


@pytest.mark.parametrize(
    ("content", "variables", "trains"),
    [
        ('[export]\ncheckpoint = "ready"\n', [], False),
        ('[export]\ncheckpoint = "ready"\n', ["TRAIN=a.csv"], True),
        ('[export]\ncheckpoint = "ready"\n', ["CHECKPOINT=raw"], True),
        ("# no [finetune]\n[export]\n", [], False),
        ("[finetune]  # first\n", [], True),
        ("finetune.epochs = 1\n", [], True),
        ("finetune = { epochs = 1 }\n", [], True),
    ],
)
def test_make_trains_only_if_the_recipe_does(tmp_path: Path, content: str, variables: list[str], trains: bool) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    (tmp_path / "own.toml").write_text(content, encoding="utf-8")
    command = ["make", "--dry-run", "-o", "setup", "export", "RECIPE=own.toml", *variables]
    shown = subprocess.run(command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, check=True, capture_output=True, text=True).stdout
    assert ("tritonize finetune" in shown) is trains and "tritonize export" in shown


def test_cleaning_takes_names_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    given = {name: f"{tmp_path}/{name} {HOSTILE}".replace("/\\", "") for name in ("ARTIFACTS", "REPOSITORY")}
    Path(given["ARTIFACTS"]).mkdir(parents=True)
    subprocess.run(["make", "clean"], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"} | given, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]


def test_the_name_is_the_recipes(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    (tmp_path / "mine.toml").write_text('name = "words"\n', encoding="utf-8")
    for recipe, name in {"mine.toml": " --name 'words' ", "absent": " "}.items():
        command = ["make", "-n", "-o", "setup", "finetune", f"RECIPE={recipe}"]
        done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        assert f"--recipe '{recipe}'{name}" in done.stdout
