"""A start that fails for a reason that may pass is tried again, any other is not, and the true reason is told."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.install import ENVIRONMENT_VARIABLE, site_packages, triton_environment
from serving.options import PackageOptions
from serving.repository import package
from serving.triton_log import failure_reason, is_passing, read_line
from tests.helpers.surroundings import port_options

ABORTED = [
    "E1129 02:01:53.123456 4242 some.cc:10] something earlier",
    "terminate called after throwing an instance of 'boost::interprocess::lock_exception'",
    "  what():  boost::interprocess::lock_exception",
]
UNHEALTHY = [
    "E1129 02:01:53.123456 4242 model_lifecycle.cc:641] failed to load 'one_preprocess' version 1: Internal: "
    "failed to run warmup sample 'short': Stub process 'one_preprocess_0_0' is not healthy.",
    "error: creating server: Internal - failed to load all models",
]
BAD_CONFIG = [
    "E1129 02:01:53.123456 4242 model_lifecycle.cc:641] \"failed to load 'one_model' version 1: "
    'Invalid argument: no such thing\\n\\nAt:"',
    "E1129 02:01:53.123456 4242 model_repository_manager.cc:703] Invalid argument: ensemble 'one' depends on 'one_model'",
    "error: creating server: Internal - failed to load all models",
]
NO_MODEL = [
    "E1129 02:01:53.123456 4242 model_repository_manager.cc:1460] \"Poll failed for model directory 'theirs': Invalid model name: "
    'Could not determine backend for model"',
    "error: creating server: Internal - failed to load all models",
]


@pytest.mark.parametrize(
    ("lines", "reason", "passing"),
    [
        (ABORTED, "boost::interprocess::lock_exception", True),
        (UNHEALTHY, "failed to load 'one_preprocess' version 1: Internal: failed to run warmup sample 'short': Stub process", True),
        (BAD_CONFIG, "failed to load 'one_model' version 1: Invalid argument: no such thing", False),
        (NO_MODEL, "Poll failed for model directory 'theirs': Invalid model name: Could not", False),
        (["error while loading shared libraries: libx.so"], "error while loading shared libraries: libx.so", False),
        ([], "it printed no error", False),
        (["I1129 02:01:53.123456 4242 a.cc:1] ready", ""], "it printed no error", False),
    ],
)
def test_the_reason_of_a_failed_start(lines: list[str], reason: str, passing: bool) -> None:
    assert failure_reason(lines).startswith(reason)
    assert "\n" not in failure_reason(lines) and "\\n" not in failure_reason(lines)
    assert is_passing(lines) == passing


def test_the_level_of_a_line() -> None:
    levels = [read_line(line).level for line in ("I1129 1:2 3 a.cc:1] x", "W1129 1:2 3 a.cc:1] x", ABORTED[0], ABORTED[1], "plain")]
    assert levels == [20, 30, 40, 40, 20]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("one") / "model_repository"
    package(PackageOptions(bundle=bundle, repository=folder, name="one", precision="fp32", device="cpu"))
    return folder


Fails = Callable[[int, str], dict[str, str]]


@pytest.fixture
def fails(tmp_path: Path) -> Fails:
    """An environment whose tritonserver runs some shell commands in place of its first starts, and counts its starts."""

    def make(times: int, commands: str) -> dict[str, str]:
        real = triton_environment().absolute()
        packages = tmp_path / "env" / site_packages(real).relative_to(real)
        binary = packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        binary.parent.mkdir(parents=True)
        for entry in site_packages(real).iterdir():
            if entry.name != "pytriton":
                (packages / entry.name).symlink_to(entry)
        wheel = site_packages(real) / "pytriton" / "tritonserver"
        for entry in wheel.iterdir():
            if entry.name != "bin":
                (packages / "pytriton" / "tritonserver" / entry.name).symlink_to(entry)
        for entry in real.iterdir():
            if entry.name not in ("lib", "lib64"):
                (tmp_path / "env" / entry.name).symlink_to(entry)
        starts = tmp_path / "starts"
        script = f"#!/bin/bash\necho >> {starts}\nif [ $(wc -l < {starts}) -le {times} ]; then\n{commands}\nfi\n"
        binary.write_text(f'{script}exec {wheel / "bin" / "tritonserver"} "$@"\n')
        binary.chmod(0o755)
        return {ENVIRONMENT_VARIABLE: str(tmp_path / "env")}

    return make


def printed(lines: list[str]) -> str:
    return "\n".join(f"echo {shlex.quote(line)} >&2" for line in lines)


def serve(repository: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export.cli", "serve", f"--repository={repository}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment, timeout=120)


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts").read_text().splitlines())


@pytest.mark.server
@pytest.mark.long
def test_a_passing_failure_is_tried_again_and_told(repository: Path, tmp_path: Path, fails: Fails) -> None:
    ports = port_options()
    environment = fails(1, f"{printed(ABORTED[1:])}\nkill -ABRT $$")
    done = serve(repository, environment, *ports, "--detach")
    try:
        assert done.returncode == 0, done.stderr
        assert "ready: one" in done.stdout
        told = "tritonserver was ended by SIGABRT before it was ready: boost::interprocess::lock_exception; this may pass"
        assert f"warning: {told}: trying again (start 2 of 3)" in done.stderr
        assert starts(tmp_path) == 2
    finally:
        subprocess.run([sys.executable, "-m", "export.cli", "stop", ports[0]], check=done.returncode == 0)


@pytest.mark.server
def test_it_is_not_tried_for_ever(repository: Path, tmp_path: Path, fails: Fails) -> None:
    environment = fails(9, f"{printed(UNHEALTHY)}\nexit 1")
    done = serve(repository, environment, *port_options(), "--detach")
    assert done.returncode == 1 and starts(tmp_path) == 3
    assert "(start 2 of 3)" in done.stderr and "(start 3 of 3)" in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: tritonserver was stopped before it was ready: failed to load 'one_preprocess' version 1: ")
    assert "Stub process 'one_preprocess_0_0' is not healthy" in error and not done.stdout


@pytest.mark.server
def test_a_server_that_takes_too_long_is_not_tried_again(repository: Path, tmp_path: Path, fails: Fails) -> None:
    done = serve(repository, fails(9, "exec sleep 600"), *port_options(), "--ready-timeout=1")
    assert done.returncode == 1 and starts(tmp_path) == 1
    assert done.stderr.splitlines()[-1] == "error: tritonserver was not ready after 1 s (raise --ready-timeout)"


@pytest.mark.server
def test_a_lasting_failure_is_not_tried_again(repository: Path, tmp_path: Path, fails: Fails) -> None:
    done = serve(repository, fails(9, f"{printed(BAD_CONFIG)}\nexit 1"), *port_options())
    assert done.returncode == 1 and starts(tmp_path) == 1
    assert "failed to load 'one_model' version 1: Invalid argument: no such thing" in done.stderr.splitlines()[-1]
