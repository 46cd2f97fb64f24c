"""The release script with a running server. Where a verdict of the benchmark is given, only the gates are made up."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from export.cli import main
from serving.artifact import MANIFEST
from serving.layout import current_generation, generations
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from serving.server_record import find_running
from serving.signatures import verify
from tests.helpers.servers import running, serve_options
from tests.helpers.surroundings import free_port

pytestmark = [pytest.mark.server, pytest.mark.long]
SCRIPT = Path(__file__).parents[2] / "serving" / "deploy" / "release.sh"
WAYS = {"name": "one", "precision": "fp32", "device": "cpu", "batching": "off", "instances": 1}
TRITONIZE = """#!/bin/bash
# Runs tritonize. The verdict of benchmark may be given, and the graph of a generation be damaged before it is promoted.
[ "$1" != benchmark ] || [ -z "$GATES" ] || exit "$GATES"
[ "$1 $DAMAGES" != "promote yes" ] || [ "$3" = "$SECOND" ] ||
  for graph in $(find "$REPOSITORY" -path "*$3*" -name model.onnx); do truncate --size 9 "$graph"; done
[ "$1" != package ] || set -- "$@" --precision fp32 --device cpu --batching off --instances 1 --layout "$LAYOUT"
exec "$PYTHON" -m export.cli "$@"
"""


@pytest.fixture
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair of keys, ``key.pem`` and ``key.pub``."""
    folder, key = tmp_path_factory.mktemp("keys"), ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    (folder / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return folder


def four_free_ports() -> int:
    """The first of four ports in a row that nobody has."""
    while True:
        first = free_port()
        try:
            for port in range(first, first + 4):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            continue
        return first


@dataclass(frozen=True)
class Releasing:
    """A server that answers with the second generation of a package, and the variables of the script."""

    folder: Path
    options: ServeOptions
    variables: dict[str, str]
    first: str
    second: str

    def release(self, **variables: str) -> subprocess.CompletedProcess[str]:
        made_up = {"GATES": "", "DAMAGES": "", "SECOND": self.second, "STAGING_PORT": str(four_free_ports())}
        environment = {**os.environ, **self.variables, **made_up, **variables}
        return subprocess.run([SCRIPT], env=environment, cwd=self.folder, capture_output=True, text=True, check=False, timeout=300)

    def run(self, command: str) -> int:
        return main([command, "one", "--http-port", str(self.options.http_port)])

    @property
    def answering(self) -> str:
        found = find_running(self.options.http_port)
        assert found is not None
        served = found.generation_of(self.options.repository, "one")
        assert served is not None
        return served.name

    @property
    def current(self) -> str | None:
        return current_generation(self.options.repository, "one")


@pytest.fixture(params=["ensemble", "fused"])
def releasing(request: pytest.FixtureRequest, bundle: Path, keys: Path, tmp_path: Path) -> Iterator[Releasing]:
    bundle = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    assert main(["sign", str(bundle), "--key", str(keys / "key.pem")]) == 0
    options = serve_options(tmp_path / "models")
    chosen = PackageOptions(**WAYS, bundle=bundle, repository=options.repository, layout=request.param, force=True)
    first = package(chosen).manifest.generation
    (tmp_path / "tritonize").write_text(TRITONIZE)
    (tmp_path / "tritonize").chmod(0o755)
    variables = {"NAME": "one", "BUNDLE": str(bundle), "REPOSITORY": str(options.repository), "HTTP_PORT": str(options.http_port)}
    variables |= {"TRITONIZE": str(tmp_path / "tritonize"), "PYTHON": sys.executable, "LAYOUT": request.param}
    with running(options):
        second = package(chosen).manifest.generation
        made = Releasing(folder=tmp_path, options=options, variables=variables, first=first, second=second)
        assert made.run("promote") == 0
        yield made


def test_a_release_reaches_the_server_only_where_its_gates_hold(releasing: Releasing, keys: Path) -> None:
    repository = releasing.options.repository
    entries = sorted(releasing.folder.rglob("*"))
    failed = releasing.release(GATES="1")
    assert failed.returncode == 1 and "release failed at: gates" in failed.stderr, failed.stderr
    assert (releasing.answering, releasing.current) == (releasing.second, releasing.second)
    assert sorted(releasing.folder.rglob("*")) == entries, "neither the generation nor its copy is left"
    assert releasing.run("rollback") == 0 and releasing.answering == releasing.first, "what answered before is still there"
    assert main(["promote", "one", releasing.second, "--http-port", str(releasing.options.http_port)]) == 0
    done = releasing.release(GATES="0", KEY=str(keys / "key.pem"), VERIFY_KEY=str(keys / "key.pub"))
    assert done.returncode == 0, done.stderr
    third = generations(repository, "one")[-1]
    assert (releasing.answering, releasing.current) == (third, third) and third > releasing.second
    generation = repository / "one" / third
    verify(generation, (generation / MANIFEST).read_bytes(), keys / "key.pub")
    assert not list(releasing.folder.glob(".*")), "the copy is removed"


BRIEF = "--rounds 2 --duration 0.5 --rows 8 --concurrency 1 --precision fp32"


@pytest.mark.endurance
@pytest.mark.timeout(900)
@pytest.mark.parametrize("releasing", ["ensemble"], indirect=True)
def test_a_release_is_measured_and_a_generation_that_is_refused_at_promote_is_taken_back(
    releasing: Releasing, trained_checkpoint: Path
) -> None:
    shown = releasing.folder / "report"

    def entries() -> set[Path]:
        shutil.rmtree(shown, ignore_errors=True)  # of the run before
        return set(releasing.folder.rglob("*"))

    before = entries()
    variables = {"BENCHMARK_OPTIONS": f"{BRIEF} --checkpoint {trained_checkpoint} --output {shown}"}
    for changed, step in (({"GATE": "served.fp32.accuracy > 2"}, "gates"), ({"DAMAGES": "yes", "GATES": "0"}, "promote")):
        failed = releasing.release(**variables, **changed)
        assert failed.returncode == 1 and f"release failed at: {step}" in failed.stderr, failed.stderr
        assert (releasing.answering, releasing.current) == (releasing.second, releasing.second)
        assert entries() == before, "neither the generation nor its copy is left"
    done = releasing.release(**variables)
    assert done.returncode == 0, done.stderr
    report = json.loads((shown / "report.json").read_text(encoding="utf-8"))
    assert [gate["expression"] for gate in report["gates"]] == ["served.fp32.metric_drop <= 0.01"]
    assert releasing.answering == releasing.current == generations(releasing.options.repository, "one")[-1] > releasing.second
