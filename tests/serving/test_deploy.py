"""The Makefile and the image: what they would run, without running it for long."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def make(*arguments: str) -> str:
    return subprocess.run(["make", "-C", PROJECT, *arguments], capture_output=True, text=True, check=True).stdout


def test_a_recipe_of_ones_own_names_the_artifact(tmp_path: Path) -> None:
    recipe = tmp_path / "tickets.toml"
    recipe.write_text('name = "tickets"   # artifacts/tickets, and the "name" of the ensemble\n')
    commands = make("-n", "package", f"RECIPE={recipe}")
    assert "--name 'tickets'" in commands
    assert "--bundle 'artifacts/tickets/bundle'" in commands


def test_variables_become_options() -> None:
    commands = make("-n", "serve", "PRECISION=fp32", "HTTP_PORT=9000", "BATCHING=ragged", "REPOSITORY=/srv/models")
    for option in ("--precision 'fp32'", "--http-port '9000'", "--batching 'ragged'", "--repository '/srv/models'"):
        assert option in commands
    commands = make("-n", "tune", "NAME=reviews", "LATENCY_P99_MS=50", "MINUTES=5", "QUEUE_DELAY_US=9")
    assert ".venv/bin/tritonize tune 'reviews'" in commands and "--latency-p99-ms '50' --minutes '5'" in commands
    assert "--queue-delay-us '500'" in make("-n", "package", "QUEUE_DELAY_US=500")


def test_the_text_asked_is_the_text_given(tmp_path: Path) -> None:
    command = tmp_path / ".venv" / "bin" / "tritonize"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\ncat\n")
    command.chmod(0o755)
    text = f"""it's "quoted", costs $5 $(touch {tmp_path}/owned) `touch {tmp_path}/owned` \\n"""
    command_line = ["make", "-s", "-f", PROJECT / "Makefile", "-o", "setup", "predict", f"TEXT={text}"]
    asked = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert asked.stdout == f"{text}\n", asked.stderr
    assert not (tmp_path / "owned").exists()


def test_clean_leaves_other_peoples_models(tmp_path: Path) -> None:
    repository, artifacts = tmp_path / "models", tmp_path / "artifacts"
    for name in ("ours", "single"):
        (repository / name / "20260102030405").mkdir(parents=True)
        (repository / name / "20260102030405" / "manifest.json").touch()
    for name in ("ours.20260102030405", "ours.20260102030405_model", "ours.20250102030405_preprocess"):
        (repository / name).mkdir()
    theirs = ["theirs", "their_model", "ours_model", "theirs.20260102030405_model", "README.md"]
    for name in theirs:
        (repository / name).mkdir()
    (repository / "theirs" / "20260102030405").mkdir()
    artifacts.mkdir()
    # not in the project itself: what its stages made stays
    subprocess.run(
        ["make", "-f", PROJECT / "Makefile", "clean", f"REPOSITORY={repository}", f"ARTIFACTS={artifacts}"],
        cwd=tmp_path,
        check=True,
    )
    assert sorted(entry.name for entry in repository.iterdir()) == sorted(theirs)
    assert not artifacts.exists()


def test_the_image_starts_the_server_with_its_changing_apis_closed(tmp_path: Path) -> None:
    server = tmp_path / "tritonserver"
    server.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)
    for name in ("one", "two", "one.20260102030405", "one.20260102030405_model", "one.2_model"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.pbtxt").touch()
    text = (PROJECT / "serving" / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    entrypoint = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0].replace("/models", f"{tmp_path}/models"))
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    started = subprocess.run([*entrypoint, "--log-verbose=1"], env=environment, capture_output=True, text=True, check=True).stdout
    flags = dict(line.split("=", 1) for line in started.split("\n--")[1:])
    assert started.startswith(f"--model-repository={tmp_path}/models\n")
    loaded = [line for line in started.splitlines() if line.startswith("--load-model")]
    assert sorted(loaded) == ["--load-model=one", "--load-model=one.2_model", "--load-model=two"]
    assert flags["log-verbose"] == "1\n"
    closed = "model-repository,logging,trace,shared-memory:closed\n=\nx"
    assert flags["http-restricted-api"] == flags["grpc-restricted-protocol"] == closed
