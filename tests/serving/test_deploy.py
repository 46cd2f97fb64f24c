"""The Makefile and the image: what they would run, without running it for long."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serving.click_options import build
from serving.commands import serve_command
from serving.health_port import HealthPort
from serving.oci import installation
from serving.options import ServeOptions
from serving.readiness import Readiness
from tests.helpers.surroundings import free_port

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


def dockerfile() -> str:
    return (PROJECT / "serving" / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", dockerfile(), re.MULTILINE)


def test_the_image_runs_the_supervisor() -> None:
    program, command, *arguments = json.loads(instructions("ENTRYPOINT")[0])
    assert (program, command) == ("tritonize", "serve")
    with serve_command.make_context(command, [*arguments, "--http-port=9000"]) as ctx:
        options = build(ServeOptions, ctx, ctx.params)
    assert (options.repository, options.host, options.strict, options.http_port) == (Path("/models"), "0.0.0.0", True, 9000)  # noqa: S104
    ports = (ServeOptions.http_port, ServeOptions.grpc_port, ServeOptions.metrics_port, ServeOptions().own_health_port)
    assert instructions("EXPOSE") == [" ".join(map(str, ports))]
    compose = (PROJECT / "serving" / "docker" / "compose.yaml").read_text(encoding="utf-8")
    assert f'["127.0.0.1:{ports[0]}-{ports[-1]}:{ports[0]}-{ports[-1]}"]' in compose


def test_the_health_check_of_the_image_asks_whether_it_is_ready() -> None:
    program, *arguments = json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2])
    readiness, options = Readiness(), ServeOptions(metrics_port=free_port())
    code = arguments[-1].replace("http://127.0.0.1:8003", options.health_url)
    assert (program, arguments[:-1]) == ("python3", ["-c"]) and code != arguments[-1]

    def check() -> int:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode

    assert check() == 1, "nobody answers"
    with HealthPort(options, readiness):
        assert check() == 1, "it starts"
        readiness.begin(["one"], [])
        assert check() == 0


def pins(python: str, file: str = "triton") -> dict[str, str]:
    """The versions that a version of Python gets. Each package has one."""
    lines = (PROJECT / ".constraints" / f"{file}.txt").read_text(encoding="utf-8").splitlines()
    chosen = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate({"python_version": python})]
    found = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in chosen}
    assert len(found) == len(chosen), "pip needs one version of each"
    return found


def test_the_python_of_the_image_gets_a_client_that_its_pinned_packages_satisfy() -> None:
    old, new, toolchain = pins("3.11"), pins("3.12"), pins("3.12", "toolchain")
    changed = {name for name in new if new[name] != old.get(name)}
    assert changed == {"geventhttpclient", "greenlet", "ml-dtypes", "protobuf", "tritonclient"}
    assert {new[name] for name in changed} == {toolchain[name] for name in changed}, "pip-audit looks these up in the toolchain"
    assert old.keys() == new.keys() - {"ml-dtypes"} and new["numpy"] == old["numpy"]
    assert distribution("tritonclient").version == new["tritonclient"]
    needed = [Requirement(line) for line in distribution("tritonclient").requires or []]
    for one in needed:
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("grpc", "http")):
            assert one.specifier.contains(new[canonicalize_name(one.name)]), one
    assert "--only-binary=:all:" in dockerfile(), "a package without a wheel would be compiled"


def test_the_container_has_no_rights_that_it_does_not_need() -> None:
    compose = yaml.safe_load((PROJECT / "serving" / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    for service in compose["services"].values():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "privileged" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert [path.partition(":")[0] for path in service["tmpfs"]] == ["/tmp"]  # noqa: S108
        assert all(volume.endswith(":ro") for volume in service["volumes"])


def test_the_image_gets_what_it_installs() -> None:
    copied = [path for line in instructions("COPY") for path in line.split()[:-1]]
    let_in = {line.removeprefix("!") for line in (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()}
    assert {"export", "serving", "benchmarks", "pyproject.toml"} <= set(copied) <= let_in
    assert all((PROJECT / path).exists() for path in copied)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = pins("3.12").keys()
    extras = re.findall(r"/tritonize\[([a-z,]+)\]", dockerfile())[0].split(",")
    assert extras == ["server", "signing"], "serve --verify-key needs what verifies signatures"
    assert f'"tritonize[{",".join(extras)}] @' in Path(installation.__file__).read_text(encoding="utf-8"), "so has the other image"
    wanted = [*project["dependencies"], *(name for extra in extras for name in project["optional-dependencies"][extra])]
    assert {name.split("[")[0] for name in wanted} <= pinned
